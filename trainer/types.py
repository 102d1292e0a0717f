"""The words of the system as plain frozen dataclasses: prompt, rollout, verdict, group.

They import neither torch nor ray, so that verifier processes start in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Prompt:
    """One task.

    `uid` is unique over all files of a run, `index` is the row among them. `messages` are the chat messages, the
    last one from the user. `token_ids` int32 [P] is the chat-templated prompt up to and including the assistant
    header; empty until a tokenizer has seen it.
    """

    uid: str
    data_source: str
    messages: Sequence[Mapping[str, str]]
    ground_truth: str = ""
    extra_info: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0
    token_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass(frozen=True, eq=False)
class Rollout:
    """One sampled response.

    `token_ids` int32 [T] are the student's own tokens, the end-of-turn token included when there is one.
    `sampler_logp` float32 [T] is what the engine gave each of them, in nats, under the distribution it really
    sampled from (temperature, top-p and top-k applied). `finished` is False for a truncated rollout.
    """

    text: str
    token_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    sampler_logp: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    finished: bool = True


class Outcome(StrEnum):
    """What became of a response at the verifier."""

    PASS = "pass"
    FAIL = "fail"
    FORMAT = "format"  # no answer in the asked format
    TRUNCATED = "truncated"  # cut by the response budget before it was right
    TIMEOUT = "timeout"  # the response's program ran out of time
    ERROR = "error"  # the verifier itself failed: says nothing of the response


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of a response.

    `reward` trains and decides who is a peer, `acc` in [0, 1] is reported (for code the share of tests passed),
    `pred` is what was compared (the vote of maj@k), `feedback` may be shown to the teacher and holds no ground truth.
    """

    outcome: Outcome
    reward: float
    acc: float
    pred: str = ""
    feedback: str = ""
    incorrect_format: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the verdict under the result keys of the published scorers (behaviour 2.2), plus `outcome`."""
        return {
            "score": self.reward,
            "acc": self.acc,
            "pred": self.pred,
            "incorrect_format": int(self.incorrect_format),
            "feedback": self.feedback,
            "outcome": str(self.outcome),
            **self.details,
        }


@dataclass(frozen=True, eq=False)
class Group:
    """The n rollouts of one prompt in one step, with their verdicts in the same order."""

    prompt: Prompt
    rollouts: Sequence[Rollout]
    verdicts: Sequence[Verdict]

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.verdicts):
            raise ValueError(f"group {self.prompt.uid!r} has {len(self.rollouts)} rollouts but {len(self.verdicts)} verdicts")


@dataclass(frozen=True, eq=False)
class Sample:
    """One rollout as an objective wants it trained.

    `prompt_ids` int32 [P] and `response_ids` int32 [T] are what the student read and wrote; `context_ids` int32 [C] is
    what the second model (teacher or reference) reads before the same response. `advantage` is per sequence. An
    inactive sample has a gradient of zero: it counts in the denominators and no forward pass is run for it.
    """

    uid: str
    group: int  # position of its prompt in the batch
    index: int  # position in its group
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    sampler_logp: np.ndarray
    context_ids: np.ndarray | None = None
    advantage: float = 0.0
    passed: bool = False
    active: bool = True

    @classmethod
    def of(cls, group: Group, position: int, index: int, **more: Any) -> Sample:
        """Return rollout `index` of the group at `position` of the batch, with the fields an objective adds."""
        rollout = group.rollouts[index]
        return cls(group.prompt.uid, position, index, group.prompt.token_ids, rollout.token_ids, rollout.sampler_logp, **more)


@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective makes of the groups of one step: the samples that count, and its metrics."""

    samples: Sequence[Sample]
    metrics: Mapping[str, float] = field(default_factory=dict)
    contexts: Mapping[tuple[int, int], Any] = field(default_factory=dict)  # (group, index) -> what its teacher saw
