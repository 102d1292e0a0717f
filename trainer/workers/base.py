"""What the loop asks of its workers, wherever they run: sample, train, sync, save."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trainer.batching import Plan
from trainer.engines.base import Response, Sampling
from trainer.types import Batch, Sample


@dataclass(frozen=True, eq=False)
class Share:
    """What one rank trains in a step: its samples by position in the batch, the loss weight of their tokens, and
    its micro-batches (lists of positions) by optimizer step."""

    samples: dict[int, Sample]
    weights: dict[int, float]
    steps: Sequence[Sequence[Sequence[int]]]


@dataclass
class Report:
    """What one rank says of a step: per sample the records of its tokens (float32 [T] each), scalars, seconds by phase.

    `skipped` are the optimizer steps left out because the loss or the gradient was not finite. `peak_bytes` is the
    memory it needed most: of this step what PyTorch gave out on a GPU, on a CPU what its process ever held.
    """

    records: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    skipped: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


class Workers(ABC):
    """The actor's ranks and the engines of a run."""

    world_size: int
    restarts: int = 0  # engines that died and were started again, in this process of the run
    death: str = ""  # how the last of them died

    @abstractmethod
    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they finish; now and then an empty list, so that the caller can look up."""

    @abstractmethod
    def update(self, batch: Batch, plan: Plan, learning_rate: float) -> Report:
        """Train a step on all ranks and return their reports as one."""

    @abstractmethod
    def score(self, batch: Batch, plan: Plan) -> dict[int, np.ndarray]:
        """Return the student's log-probs of the samples' tokens, by position in the batch, without training."""

    @abstractmethod
    def sync(self) -> None:
        """Give the student's weights to the engines. Raises SyncError if what arrived is not what was sent."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the actor's part of a checkpoint."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read the actor's part of a checkpoint."""

    @abstractmethod
    def close(self) -> None:
        """End every process started."""


class SyncError(Exception):
    """Student and sampler would not be the same model."""


def shares(batch: Batch, plan: Plan) -> list[Share]:
    """Return what each rank trains."""
    ranks = len(plan.mini_batches[0].ranks) if plan.mini_batches else 0
    out = []
    for rank in range(ranks):
        steps = plan.rank(rank)
        mine = sorted({i for step in steps for micro in step for i in micro})
        out.append(Share({i: batch.samples[i] for i in mine}, {i: float(plan.weights[i]) for i in mine}, steps))
    return out


def merge(reports: Sequence[Report]) -> Report:
    """Return the ranks' reports as one: their records together, the slowest rank's seconds, the largest one's memory; losses are
    global already."""
    records = {i: record for report in reports for i, record in report.records.items()}
    first = reports[0]
    return Report(
        records={i: records[i] for i in sorted(records)},
        losses=first.losses,
        grad_norms=first.grad_norms,
        skipped=first.skipped,
        seconds={name: max(report.seconds[name] for report in reports) for name in first.seconds},
        peak_bytes=max(report.peak_bytes for report in reports),
    )


def compare_checksums(sent: dict[str, int], arrived: dict[str, int], engine: int) -> None:
    """Raise SyncError naming the tensors that differ."""
    different = sorted(name for name in sent.keys() | arrived.keys() if sent.get(name) != arrived.get(name))
    if different:
        raise SyncError(
            f"after the weight sync engine {engine} holds other values than the student in {', '.join(different)}; the run stops here"
        )
