"""Import every module of finetune, as CI does where the tests don't run: `python -m tests.import_all`."""

import importlib
import pkgutil
import sys

import finetune


def main() -> None:
    """Print how many modules import; end with status 1 and the name and error of each that doesn't."""
    # walk_packages imports packages by itself, and would end at the first that fails; below it is tried again and named.
    walk = pkgutil.walk_packages(finetune.__path__, "finetune.", onerror=lambda name: None)
    names = [module.name for module in walk]
    failed = {}
    for name in names:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            failed[name] = f"{type(error).__name__}: {error}"
    print(f"{len(names) - len(failed)} of {len(names)} modules of finetune can be imported")
    if failed:
        sys.exit("\n".join(f"{name}: {error}" for name, error in failed.items()))


if __name__ == "__main__":
    main()
