"""What an engine is: it turns prompts into sampled responses and takes new weights. Token ids in, token ids out."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to sample: `max_tokens` is the response budget; `top_k` -1 and `top_p` 1 are off; greedy ignores the rest."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    greedy: bool = False


@dataclass(frozen=True, eq=False)
class Response:
    """A finished response: which prompt and which of its samples, token ids int32 [T] with the sampler's log-probs
    float32 [T], and whether it ended by itself (else the budget cut it)."""

    prompt: int
    sample: int
    token_ids: np.ndarray
    sampler_logp: np.ndarray
    finished: bool


class Engine(ABC):
    """Samples from its own copy of the student, the sampler."""

    @abstractmethod
    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        """Sample `len(seeds[i])` responses to `prompts[i]` (int32 ids) and yield them as they finish, in any order.

        Every response draws from its own seed: the same call gives the same responses.
        """

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """Replace the weights by name and return `checksums` of what was loaded. Raises ValueError for other names."""

    def sleep(self) -> None:
        """Give back what memory can be given back while the actor trains."""

    def wake(self) -> None:
        """Be ready to generate again."""

    def close(self) -> None:
        """End what the engine started."""


def checksums(weights: Mapping[str, Tensor], dtype: torch.dtype, count: int = 5) -> dict[str, int]:
    """Return CRC-32 of the bytes, in `dtype`, of `count` tensors spread over the names in order."""
    names = sorted(weights)
    picked = sorted({names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(min(count, len(names)))})
    return {
        name: zlib.crc32(weights[name].detach().to("cpu", dtype).contiguous().view(torch.uint8).numpy().reshape(-1).data) for name in picked
    }
