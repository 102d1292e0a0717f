"""Actor and engine in this process, one rank, without Ray: tests, benchmarks, experiments."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trainer.batching import Plan
from trainer.config.schema import Config
from trainer.engines.base import Response, Sampling, corner_checksums
from trainer.types import Batch
from trainer.workers.actor import Actor
from trainer.workers.base import Report, Workers, compare_checksums, shares
from trainer.workers.setup import build_engine, compute_dtype


class LocalWorkers(Workers):
    """One rank and one engine, called directly."""

    world_size = 1

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.dtype = compute_dtype(config, torch.device(device))
        self.actor = Actor(config, device=device)
        self.engine = build_engine(config, device)
        self.watched = self.engine.watched()

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        yield from self.engine.generate(prompts, seeds, sampling)

    def update(self, batch: Batch, plan: Plan, learning_rate: float) -> Report:
        self.engine.sleep()
        (share,) = shares(batch, plan)
        return self.actor.update(share, learning_rate)

    def sync(self) -> None:
        weights = self.actor.weights(self.dtype)
        self.engine.wake("weights")
        self.engine.load_weights(weights)
        compare_checksums(corner_checksums(weights, self.watched, self.dtype), self.engine.checksums(), engine=0)
        self.engine.wake("kv_cache")

    def score(self, batch: Batch, plan: Plan) -> dict[int, np.ndarray]:
        self.engine.sleep()
        (share,) = shares(batch, plan)
        return self.actor.score(share)

    def save(self, folder: Path) -> None:
        self.actor.save(str(folder))

    def load(self, folder: Path) -> None:
        self.actor.load(str(folder))

    def close(self) -> None:
        self.engine.close()
