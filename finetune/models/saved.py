"""A fine-tuned model on disk: weights, tokenizer, how it was made, and a model card."""

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune import files, yaml_file
from finetune.errors import UserError, first_line
from finetune.files import disk_named, whole_folder, write_text
from finetune.models import card
from finetune.models.checkpoint import Checkpoint
from finetune.places import FACTS


def check_can_be_saved(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint,
) -> None:
    """Try before training, without the weights, what `save` will do after it.

    Raises UserError if something can't be written, or if the disk has no room for the weights.
    """
    folder = checkpoint.folder
    try:
        with disk_named(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=f".{folder.name}.new-", suffix=".draft", dir=folder.parent) as draft:
                _write_without_weights(model, tokenizer, checkpoint, Path(draft))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{folder}: can't be written ({error.strerror}); give another folder as --out_dir") from None
    except Exception as error:  # of a config or tokenizer of somebody else's
        raise UserError(f"{folder}: the model couldn't be saved when trained: {first_line(error)}") from None
    needed = sum(tensor.numel() * tensor.element_size() for tensor in trained(model).values())
    files.check_writable(folder, free_gb=needed / 1e9)


def save(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write adapter or full model with its tokenizer; the same bytes for the same weights.

    They go to the folder of `checkpoint`, with its facts. `weights` are all that was trained, by name, of a model whose
    own are in shards. A full model is stored in bf16, the size of its base. A folder `plots`, where the run may have
    left its curves, stays. Raises UserError if the folder can't be written; it names the file that holds the trained
    weights instead, if any place took them.
    """
    folder = checkpoint.folder
    try:
        with whole_folder(folder, keep="plots") as draft:
            _write_weights(model, weights, draft)
            _write_without_weights(model, tokenizer, checkpoint, draft)
    except Exception as error:  # hours of training are in those weights
        rescued = _rescue(weights or trained(model), folder)
        where = (
            f"the trained weights are in {rescued}" if rescued else "no other place takes the trained weights either"
        )
        raise UserError(f"{folder}: could not be saved ({first_line(error)}); {where}") from error


def _write_weights(model: PreTrainedModel | PeftModel, weights: dict[str, torch.Tensor] | None, draft: Path) -> None:
    if isinstance(model, PeftModel):
        model.save_pretrained(str(draft), state_dict=weights)
    elif weights is None:
        model.to(torch.bfloat16).save_pretrained(draft)  # type: ignore[arg-type]  # transformers' `wraps`
    else:
        narrow = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        buffers = dict(model.named_buffers())
        model.save_pretrained(draft, state_dict=narrow | {k: buffers[k] for k in model.state_dict() if k in buffers})


def _write_without_weights(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint,
    draft: Path,
) -> None:
    if isinstance(model, PeftModel):
        model.peft_config["default"].save_pretrained(str(draft))
        # In the file alone: peft would ask the Hub about a base of that name whenever it saves the adapter.
        source = checkpoint.base_source
        name_base(draft, source.get("hub", str(checkpoint.base_folder)), source.get("commit"))
    else:
        model.config.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    yaml_file.write(draft / FACTS, checkpoint.facts())
    write_text(draft / "README.md", _model_card(checkpoint))


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: an adapter's weights, or all of the model's, each once."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def _rescue(weights: dict[str, torch.Tensor], folder: Path) -> Path | None:
    """Write the trained weights alone to the first place that takes them; None if none does."""
    weights = {name: weight.cpu().contiguous() for name, weight in weights.items()}
    name = f"{folder.name}.rescued.safetensors"
    neighbour = folder.with_name(name)
    if _saved(weights, neighbour):
        return neighbour
    # Where other disks may be; None is the system's temporary folder.
    for place in (None, Path("~").expanduser()):
        with suppress(OSError):
            own = Path(mkdtemp(prefix="finetune-", dir=place))
            if _saved(weights, own / name):
                return own / name
            own.rmdir()
    return None


def _saved(weights: dict[str, torch.Tensor], target: Path) -> bool:
    try:
        save_file(weights, target)
    except Exception:  # whatever kept the model from being saved may keep this as well
        target.unlink(missing_ok=True)
        return False
    return True


def size_gb(folder: Path) -> float:
    """Size of the weights that must be kept or sent, in GB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9


def name_base(folder: Path, base: str | None, revision: str | None) -> None:
    """Let the adapter in `folder` say which model it goes over: an id on the Hub at `revision`, or a folder.

    peft keeps the target modules in a set, whose order changes from process to process: they are sorted as well.
    """
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": base, "revision": revision}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _model_card(checkpoint: Checkpoint) -> str:
    relation = "adapter" if checkpoint.method.adapters else "finetune"
    head = card.front_matter(checkpoint, relation=relation)
    return f"{head}\n# {card.title(checkpoint)}\n\n{card.origins(checkpoint)}\n"
