"""dvc.lock: what the results that lie together were made of."""

from finetune.dvc_files import outputs
from finetune.errors import UserError
from finetune.places import PREPARED, TUNED


def output_hash(lock: dict, path: str) -> str:
    """MD5 of the output at `path`."""
    return outputs(lock)[path]


def has_output(lock: dict, path: str) -> bool:
    """Whether a stage made `path`."""
    return path in outputs(lock)


def check_consistent(lock: dict, params: dict, name: str) -> None:
    """That run `name`'s stages worked on each other's outputs, under `params` (the content of params.yaml).

    Raises UserError if not: a stage was run alone or didn't end, or params.yaml was edited since.
    """
    made = outputs(lock)
    for path in (PREPARED.as_posix(), TUNED.as_posix()):
        if path not in made:
            raise UserError(f"{name}: its dvc.lock has no {path}; run `dvc repro` there, and commit dvc.lock")
    for stage, entry in lock["stages"].items():
        for dependency in entry.get("deps", []):
            if made.get(dependency["path"], dependency["md5"]) != dependency["md5"]:
                raise UserError(f"{name}: {stage} did not use the committed {dependency['path']}; run all its stages")
        for key, value in entry.get("params", {}).get("params.yaml", {}).items():
            if _at(params, key) != value:
                raise UserError(f"{name}: {stage} ran with another {key} than params.yaml has now; run it again")


def _at(tree: object, dotted: str) -> object:
    for key in dotted.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
