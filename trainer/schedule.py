"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from trainer.config.schema import Optim


def learning_rate(optim: Optim, step: int, total_steps: int) -> float:
    """Return the rate of training step `step` in 1 .. total_steps.

    The first of w warm-up steps uses lr / w (not 0, as published), the w-th lr; then constant, or linear or cosine
    down to `min_lr_ratio` x lr at the last step.
    """
    if step <= optim.lr_warmup_steps:
        return optim.lr * step / optim.lr_warmup_steps
    if optim.lr_scheduler_type == "constant":
        return optim.lr
    done = (step - optim.lr_warmup_steps) / max(1, total_steps - optim.lr_warmup_steps)
    left = 1 - done if optim.lr_scheduler_type == "linear" else (1 + math.cos(math.pi * done)) / 2
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * left)
