"""How many optimizer steps a run makes, and whether any of them has a learning rate."""

import math

import torch
from transformers import get_scheduler

from finetune import params
from finetune.errors import UserError


def check(settings: params.Train, method: params.MethodSettings, records: int) -> None:
    """Raise UserError if a run over `records` training records would make steps of learning rate 0 only."""
    if any(learning_rates(settings, method, records)):
        return
    steps = optimizer_steps(settings, method, records)
    raise UserError(
        f"train.batch_size: {records} records in batches of {settings.batch_size * settings.gradient_accumulation} make "
        f"{steps} optimizer step{'s' * (steps != 1)}, all of them in the warm-up at learning rate 0; lower "
        f"train.batch_size, train.gradient_accumulation or train.warmup, or raise methods.<method>.epochs"
    )


def optimizer_steps(settings: params.Train, method: params.MethodSettings, records: int) -> int:
    """Optimizer steps of a run."""
    return math.ceil(method.epochs * _steps_per_epoch(settings, records))


def _steps_per_epoch(settings: params.Train, records: int) -> int:
    """As Trainer counts them: what is left at an epoch's end makes a step of its own."""
    batches = math.ceil(records / settings.batch_size)
    return math.ceil(batches / settings.gradient_accumulation)


def validation_steps(settings: params.Train, method: params.MethodSettings, records: int) -> set[int]:
    """The optimizer steps after which a run is validated: `validations` in an epoch, evenly apart, and the last."""
    last, per_epoch = optimizer_steps(settings, method, records), _steps_per_epoch(settings, records)
    parts = range(1, settings.validations + 1)
    points = {
        epoch * per_epoch + math.ceil(per_epoch * part / settings.validations)
        for epoch in range(math.ceil(method.epochs))
        for part in parts
    }
    return {last} | {point for point in points if point < last}


def learning_rates(settings: params.Train, method: params.MethodSettings, records: int) -> list[float]:
    """The learning rate of each step of a run."""
    steps = optimizer_steps(settings, method, records)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=method.learning_rate)
    scheduler = get_scheduler(settings.scheduler, optimizer, math.ceil(steps * settings.warmup), steps)
    return [method.learning_rate * rate(step) for step in range(steps) for rate in scheduler.lr_lambdas]
