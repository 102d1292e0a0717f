"""What an objective is: which rollouts train and with what (on the driver), and the loss of each token (on the actor)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.divergence import Divergence
from trainer.scores import Scores
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
    divergence: Divergence | None = None  # which divergence from the second model the loss wants
    token_metrics: ClassVar[Mapping[str, str]] = {}  # name of a token record -> name its mean is logged under

    def __init__(self, config: Config) -> None:
        self.config = config
        self.actor = config.actor_rollout_ref.actor
        self.correction = config.algorithm.rollout_correction

    @abstractmethod
    def prepare(self, groups: Sequence[Group], chat: Chat, step: int) -> Batch:
        """Return the samples to train on. Pure: the same groups and step give the same batch."""

    @abstractmethod
    def token_loss(self, scores: Scores, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each token [R] (with gradient) and records of each token [R] (without).

        Gradients may flow through `student_logp`, `entropy` and `divergence` of the scores, which are those of logits
        divided by the sampling temperature. Records always hold `student_logp`, `entropy` and `importance_weight`.
        """
