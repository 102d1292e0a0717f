"""What an objective is: which rollouts train and with what (on the driver), and the loss of each token (on the actor)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.types import Batch, Group


@dataclass(frozen=True, eq=False)
class Tokens:
    """What is known of R response tokens, flattened over the sequences of a micro-batch.

    `targets` int64 [R] are the tokens themselves; `sampler_logp` and `advantage` float32 [R]. `old_logp` float32 [R]
    is the student's log-prob before the first optimizer step of this training step, None when there is one step only
    (then it equals `student_logp`). `sequence_log_ratio` float32 [R] is the whole sequence's log importance ratio.
    """

    targets: Tensor
    sampler_logp: Tensor
    advantage: Tensor
    old_logp: Tensor | None = None
    sequence_log_ratio: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Tokens":
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return Tokens(**{name: None if part is None else part[rows] for name, part in parts.items()})


class Objective(ABC):
    """A `loss_mode`. One instance lives on the driver (`prepare`), one on every actor rank (`token_loss`)."""

    second_model: str | None = None  # "teacher" or "reference": scored without gradient beside the student
    token_metrics: ClassVar[Mapping[str, str]] = {}  # name of a token record -> name its mean is logged under

    def __init__(self, config: Config) -> None:
        self.config = config
        self.actor = config.actor_rollout_ref.actor
        self.correction = config.algorithm.rollout_correction

    @abstractmethod
    def prepare(self, groups: Sequence[Group], chat: Chat, step: int) -> Batch:
        """Return the samples to train on. Pure: the same groups and step give the same batch."""

    @abstractmethod
    def token_loss(self, student_logits: Tensor, second_logits: Tensor | None, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each token [R] (with gradient) and records of each token [R] (without).

        Both logits are [R, V], divided by the sampling temperature. Records always hold `student_logp`, `entropy`
        and `importance_weight`.
        """


def sampled_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """Return log softmax(logits)[target] of each row: [R, V], [R] -> [R]."""
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) of each row in nats: [R, V] -> [R]."""
    logp = logits.log_softmax(-1)
    return -torch.where(logp > -torch.inf, logp.exp() * logp, 0).sum(-1)
