"""The parts of a run's memory, at its peak. docs/plan.md has the formulas and their sources."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from finetune import params
from finetune.planner.counted import count
from finetune.planner.losses import loss_bytes
from finetune.planner.passes import Pass
from finetune.planner.process import holes, loading_bytes, process_bytes
from finetune.planner.sizes import Sizes
from finetune.planner.steps import step_bytes


@dataclass(frozen=True)
class Parts:
    """Bytes."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    """What waits for the backward pass when all gradients are there, or before any is if that is more."""
    logits: int
    workspace: int
    process: int
    """On a CPU, what libraries load and compile while they run; on CUDA nothing: torch's allocator doesn't count that."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(getattr(self, one.name) for one in fields(self))

    def gb(self) -> dict[str, float]:
        """Each in GB of 10^9 bytes, by `<part>_gb`."""
        return {f"{name}_gb": round(value / 1e9, 3) for name, value in asdict(self).items()}

    def per_rank(self, launch: params.Launch) -> Parts:
        """Of each of several processes: FSDP shards weights, adapters, gradients and optimizer (ZeRO stage 3, Rajbhandari
        et al. 2020, section 5), DDP nothing. Activations are of a process's own sequences either way."""
        if not is_sharded(launch):
            return self
        names = ("weights", "adapters", "gradients", "optimizer")
        return replace(self, **{name: -(-getattr(self, name) // launch.processes) for name in names})


def is_sharded(launch: params.Launch) -> bool:
    """Whether each process holds a part."""
    return launch.shard and launch.processes > 1


def parts(sizes: Sizes, train: params.Train, at: Pass) -> Parts:
    """Of a run by `train` whose largest pass is `at`, of a model of these `sizes`. Raises UserError if the model's own
    layers can't be planned."""
    loss = loss_bytes(sizes.head, at.targets, sizes.item)
    gradients, before = sizes.gradients, sizes.gradients if at.accumulated else sizes.freed_gradients
    end = gradients + loss.between + sizes.embedding_gradient
    if sizes.widths:
        steps = step_bytes(sizes.widths, at, sizes.item, checkpointing=train.gradient_checkpointing)
        kept, workspace = steps.kept, steps.shared + sizes.copies + sizes.matrix * sizes.rounded
        moments = [before + loss.most, end]
    else:
        counted = count(sizes.model, at, checkpointing=train.gradient_checkpointing)
        kept, workspace = counted.kept, sizes.matrix * sizes.rounded
        writes = 3 if train.gradient_checkpointing else 2
        spoiled = holes(counted, writes * sizes.dequantised) if sizes.device == "cpu" else 0
        # Layers that are made again leave holes in the forward pass already, beside which there is the loss.
        loss_holes = spoiled if train.gradient_checkpointing else 0
        moments = [
            before + loss.most + loss_holes,
            before + loss.between + counted.most - kept + spoiled,
            end - kept + spoiled,
        ]
    # Beside what is kept, the workspace and the logits.
    beside = max(moments)
    activations = min(kept, kept + beside - gradients)
    training = Parts(
        weights=sizes.weights,
        adapters=sizes.adapters,
        gradients=gradients,
        optimizer=sizes.optimizer,
        activations=activations,
        logits=loss.logits,
        workspace=workspace + kept + beside - gradients - activations,
        process=process_bytes(at) if sizes.device == "cpu" else 0,
    )
    return training if sizes.device != "cpu" else _at_least(training, loading_bytes(sizes.weights))


def _at_least(training: Parts, loading: int) -> Parts:
    """A large model with short passes has its peak while it is loaded; what that takes more goes to the workspace."""
    return replace(training, workspace=training.workspace + max(0, loading - training.total))
