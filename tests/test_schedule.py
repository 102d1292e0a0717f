"""Learning rates by step, against values worked out by hand."""

import dataclasses

import pytest

from trainer import config
from trainer.schedule import learning_rate

OPTIM = dataclasses.replace(config.load("sdpo").actor_rollout_ref.actor.optim, lr=1.0)


def rates(total: int, **changes) -> list[float]:
    optim = dataclasses.replace(OPTIM, **changes)
    return [learning_rate(optim, step, total) for step in range(1, total + 1)]


def test_constant():
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warm_up_starts_above_zero_and_reaches_the_rate():
    assert rates(6, lr_warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_ends_at_its_floor():
    assert rates(4, lr_scheduler_type="linear", min_lr_ratio=0.2) == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert rates(4, lr_scheduler_type="linear", lr_warmup_steps=2) == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_cosine_is_half_way_in_the_middle():
    assert rates(4, lr_scheduler_type="cosine", min_lr_ratio=0.5)[1] == pytest.approx(0.75)
    assert rates(4, lr_scheduler_type="cosine")[-1] == pytest.approx(0.0)
