"""The front matter of a model card: what the Hub reads of a model, in every card that is written here."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from finetune.models.checkpoint import Checkpoint
from finetune.sources.catalogue import CATALOGUE

REPOSITORY = "https://github.com/zeyuyuyu/Qlora"
"""As pyproject.toml has it."""

_FREE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense", "cc0-1.0", "cc-by-4.0")
_BINDING = (
    *("cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "agpl-3.0", "odbl"),
    *("openrail", "bigscience-openrail-m", "gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
)
"""The Hub's names of licences (https://huggingface.co/docs/hub/repositories-licenses): those of the second row bind what
is made of a work as well."""


def front_matter(checkpoint: Checkpoint, *, relation: str, tags: tuple[str, ...] = ()) -> str:
    """The YAML block at the head of the card of `checkpoint`, or of what is made of it.

    `relation` is what the model is to its base, in the Hub's words: 'adapter' or 'finetune'. What isn't known of
    licence, language, or places on the Hub is left out.
    """
    licence = _licence(checkpoint.base_source["licence"], checkpoint.data["licence"])
    library = None if "gguf" in tags else "peft" if relation == "adapter" else "transformers"
    data = ModelCardData(
        language=_catalogued("data", checkpoint.data, "language"),
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        base_model=hub_id("model", checkpoint.base_source),
        datasets=[found for part in parts(checkpoint.data) if (found := hub_id("data", part))] or None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=[checkpoint.method.name, "sft", *tags],
        base_model_relation=relation if hub_id("model", checkpoint.base_source) else None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def parts(source: dict) -> list[dict]:
    """The sources that data came from, where they are several; else the one."""
    return source.get("sources") or [source]


def hub_id(kind: str, source: dict) -> str | None:
    """Where on the Hub a source lies or, if it is a package's copy in another form, its original; None if unknown."""
    return source.get("hub") or _catalogued(kind, source, "original")


def title(checkpoint: Checkpoint) -> str:
    """What the card is called."""
    return f"{checkpoint.base_source['source']} fine-tuned by {checkpoint.method.label}"


def origins(checkpoint: Checkpoint) -> str:
    """What the model was made of, with the licences, as a Markdown list."""
    return f"""- Base model: {whence(checkpoint.base_source)}; licence: {checkpoint.base_source["licence"]}
- Instructions: {"; ".join(f"{whence(part)}; licence: {part['licence']}" for part in parts(checkpoint.data))}
- Prompt template: {checkpoint.template}; seed {checkpoint.seed}
- Made with [finetune]({REPOSITORY})

The licence of the instructions bounds what these weights may be used for."""


def whence(source: dict) -> str:
    """Where a source came from, so that others can get the same."""
    if "hub" in source:
        return f"{source['hub']} on the Hugging Face Hub, commit {source['commit']}"
    if "package" in source:
        return f"{source['source']}, `{source['file']}` in the Python package `{source['package']}`"
    return str(source["source"])


def _catalogued(kind: str, source: dict, what: str) -> str | None:
    return getattr(CATALOGUE[kind].get(source["source"]), what, None)


def _licence(*texts: str) -> dict[str, str]:
    """The card's licence for something made of works under `texts`: nothing, if one of them is unknown.

    The one that binds what is made of its work wins; of two such that differ the card says both.
    """
    names = [text.split(" (")[0].strip().lower().replace(" ", "-") for text in texts]
    if not set(names) <= {*_FREE, *_BINDING}:
        return {}
    binding = list(dict.fromkeys(name for name in names if name in _BINDING))
    if len(binding) > 1:
        return {"license": "other", "license_name": "-and-".join(binding)}
    return {"license": (binding or names)[0]}
