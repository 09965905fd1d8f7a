"""What was fetched, noted in facts.yaml next to it."""

from pathlib import Path

from finetune import yaml_file
from finetune.places import FACTS
from finetune.sources.catalogue import HubRepo, LocalPath, PackageFile, Source


def write_provenance(name: str, source: Source, folder: Path) -> None:
    """Note what was fetched. A local path is left out: the bytes count, not where they were."""
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
    yaml_file.write(folder / FACTS, facts)


def provenance(folder: Path) -> dict:
    """What `fetch` noted about the contents of `folder`, or the little that is known of a user's folder or file."""
    facts = yaml_file.read(folder / FACTS) if (folder / FACTS).is_file() else {}
    # The facts of a fine-tuned model are others, and a user's file of that name may hold anything.
    if isinstance(facts, dict) and {"source", "licence"} <= facts.keys():
        return facts
    return {"source": folder.name, "licence": LocalPath.licence}
