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


@dataclass(frozen=True)
class Settings:
    """How an engine runs, whichever it is; each takes what it has a use for.

    `max_model_len` bounds prompt and response together, in tokens. `memory_share` is the share of the device's memory
    the engine may take. `sleeps` says that the actor trains on the engine's device, so that `sleep` is worth its time.
    `transfer` names how weights arrive on GPUs ("ipc", "nccl"); None: through `load_weights`.
    """

    max_num_seqs: int = 256
    max_model_len: int | None = None
    max_num_batched_tokens: int = 8192
    tensor_parallel: int = 1
    memory_share: float = 0.5
    eager: bool = False
    sleeps: bool = False
    transfer: str | None = None
    trust_remote_code: bool = False


class Engine(ABC):
    """Samples from its own copy of the student, the sampler."""

    @abstractmethod
    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        """Sample `len(seeds[i])` responses to `prompts[i]` (int32 ids) and yield them as they finish, in any order.

        Every response draws from its own seed: the same call gives the same responses. While none finishes an empty
        list comes every HEARTBEAT seconds in which tokens were made: a caller that hears nothing knows the engine is stuck.
        """

    @abstractmethod
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights by name. Raises ValueError for other names."""

    @abstractmethod
    def watched(self) -> list[str]:
        """Return the names of a few tensors, spread over the model, that `checksums` reads back from it."""

    @abstractmethod
    def checksums(self) -> dict[str, int]:
        """Return `corner_checksum` of the watched tensors as the engine computes with them."""

    def sleep(self) -> None:
        """Give back what memory can be given back while the actor trains; the weights may be gone afterwards."""

    def wake(self, what: str) -> None:
        """Take memory back in two stages: "weights" before new ones arrive, "kv_cache" before sampling."""

    def close(self) -> None:
        """End what the engine started."""


HEARTBEAT = 1.0  # seconds
CORNER = 4  # columns of a matrix that are compared
WATCHED = 8  # tensors


def corner_checksum(tensor: Tensor, dtype: torch.dtype) -> int:
    """Return CRC-32 of the bytes, in `dtype`, of a vector or of a matrix's first CORNER columns."""
    corner = (tensor[..., :CORNER] if tensor.ndim > 1 else tensor).detach().to("cpu", dtype).contiguous() + 0.0  # -0 is 0
    return zlib.crc32(corner.view(torch.uint8).numpy().reshape(-1).data)


def corner_checksums(weights: Mapping[str, Tensor], names: Sequence[str], dtype: torch.dtype) -> dict[str, int]:
    """Return `corner_checksum` of the named weights; the head of tied embeddings is the embedding."""
    tied = {"lm_head.weight": next((tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight")), None)}
    return {name: corner_checksum(weights[name] if name in weights else tied[name], dtype) for name in names}


def spread(names: Sequence[str], count: int = WATCHED) -> list[str]:
    """Return `count` of the names, evenly from first to last in alphabetical order, matrices and vectors alike."""
    names, count = sorted(names), min(count, len(names))
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]
