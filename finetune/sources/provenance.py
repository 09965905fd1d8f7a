"""What was fetched, noted beside it in facts.yaml."""

from pathlib import Path

from finetune import yaml_file
from finetune.files import write_yaml
from finetune.places import FACTS
from finetune.sources.catalogue import HubRepo, LocalPath, PackageFile, Source


def write_provenance(name: str, source: Source, folder: Path) -> None:
    """Say what was fetched. A local path is left out: the bytes are what counts, not where they lay."""
    facts = {"source": name, "licence": source.licence}
    if isinstance(source, PackageFile):
        facts |= {
            "package": f"{source.package}=={source.version}",
            "file": source.member,
            "sha256": source.member_sha256,
        }
    elif isinstance(source, HubRepo):
        facts |= {"hub": source.repo_id, "commit": source.revision}
    else:
        facts["source"] = source.path.name
    write_yaml(folder / FACTS, facts)


def provenance(folder: Path) -> dict:
    """What `fetch` noted about the contents of `folder`, or what little is known of a folder or file of the user's."""
    facts = yaml_file.read(folder / FACTS) if (folder / FACTS).is_file() else {}
    # Those of a fine-tuned model say other things, and a file of that name among the user's may say anything.
    if isinstance(facts, dict) and {"source", "licence"} <= facts.keys():
        return facts
    return {"source": folder.name, "licence": LocalPath.licence}
