"""Log-probs of given responses behind given contexts: what both engines of the scoring command do alike.

A pair is (context ids int32 [C], response ids int32 [T]), both non-empty; its score float32 [T] holds log p(token | context,
earlier tokens of the response), at temperature 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from analysis.reader import Reader
from trainer import forest, fused, models
from trainer.attention import plan_attention
from trainer.forest import MIN_SHARED
from trainer.fused import Head
from trainer.models import ForestLM

Pair = tuple[np.ndarray, np.ndarray]


class Scorer(Protocol):
    """An engine that scores."""

    def batches(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Return which pairs to score together; every pair is in one batch."""

    def score(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Return the scores of a batch, float32 [T] each, in order."""

    def close(self) -> None:
        """Give back what it took."""


class ForestScorer:
    """Scores with the transformers model: what contexts share is read once, logits exist for responses alone, in chunks."""

    def __init__(self, lm: nn.Module, *, device: str = "cpu", max_tokens: int = 16384) -> None:
        self.model, self.device, self.max_tokens = ForestLM(lm).to(device).eval(), device, max_tokens
        self.computed = 0  # tokens read so far

    def batches(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Fill batches of at most `max_tokens` computed tokens with pairs whose contexts begin alike; a longer pair stands alone."""
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0].astype(">u4").tobytes())
        filled: list[list[int]] = []
        size = 0
        for i in order:
            own = len(pairs[i][1]) - 1
            needed = own + len(pairs[i][0]) - (_shared(pairs[filled[-1][-1]][0], pairs[i][0]) if filled else 0)
            if not filled or size + needed > self.max_tokens:
                filled.append([])
                size, needed = 0, own + len(pairs[i][0])
            filled[-1].append(i)
            size += needed
        return filled

    def close(self) -> None:
        """Nothing to do: memory goes with the object."""

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[np.ndarray]:
        """Return the scores of pairs that are read in one pass."""
        packed = forest.build(pairs)
        targets = torch.from_numpy(np.concatenate([response for _, response in pairs]).astype(np.int64)).to(self.device)

        def logp(hidden: torch.Tensor, head: Head) -> torch.Tensor:
            return fused.sampled_logp(hidden, head, targets)

        self.computed += len(packed.token_ids)
        scores = self.model(packed, plan_attention(packed, self.device), logp).float().cpu().numpy()
        return np.split(scores, np.cumsum(packed.row_counts)[:-1])


def _shared(before: np.ndarray, after: np.ndarray) -> int:
    """Return a lower bound of how many tokens the forest shares between neighbours in sorted order."""
    common = forest.common_prefix(before, after)
    return common if common == len(before) == len(after) else max(common - MIN_SHARED + 1, 0)


def load_lm(reader: Reader, weights: str, *, dtype: torch.dtype) -> nn.Module:
    """Return the language model with forest attention in `dtype`, with the model's own weights or the checkpoint's EMA teacher's."""
    trust = reader.config.actor_rollout_ref.model.trust_remote_code
    models.check_architecture(models.resolve(reader.path, "--model", trust_remote_code=trust), "--model")
    if weights == "student":
        return models.build_lm(reader.path, attention="forest", dtype=dtype, trust_remote_code=trust)
    lm = models.build_lm(reader.path, attention="forest", dtype=torch.float32, trust_remote_code=trust, with_weights=False)
    load_average(reader.checkpoint, lm)
    return lm.to(dtype)


def load_average(checkpoint: Path, lm: nn.Module) -> None:
    """Read the EMA teacher of a checkpoint folder of ours into a float32 model."""
    from trainer.workers.state import load_teacher

    load_teacher(checkpoint, ForestLM(lm))
