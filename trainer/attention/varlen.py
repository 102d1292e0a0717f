"""Forest attention where nothing is shared: sequences laid end to end, each causal within itself.

Through torch's own variable-length attention, which is FlashAttention's kernels with grouped heads and gradients: the
package flash-attn, hard to install beside a given torch, would add nothing to it.
"""

import functools
import inspect
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from trainer.forest import Forest


@dataclass(frozen=True, eq=False)
class Chains:
    """`bounds` int32 [N + 1]: where each of N sequences begins and the last one ends; `longest` in tokens."""

    bounds: Tensor
    longest: int


def is_chains(forest: Forest) -> bool:
    """Say whether every segment has at most one child, so that each tree is one sequence of tokens."""
    inner = forest.parents[forest.parents >= 0]
    return len(np.unique(inner)) == len(inner)


def runs(query: Tensor) -> bool:
    """Say whether the kernels cover `query` [1, Hq, T, D]: forward and backward on every GPU that has them."""
    half, dim = query.dtype in (torch.bfloat16, torch.float16), query.shape[-1]
    return half and dim <= 128 and dim % 8 == 0 and _has_kernels(query.device)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch's first versions of it
    return grouped and torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def plan(forest: Forest, device: torch.device) -> Chains:
    """Find the sequences of a forest in which nothing is shared."""
    if not is_chains(forest):
        raise ValueError("varlen attention is for forests in which nothing is shared; this one has a segment with several children")
    bounds = np.append(forest.starts[forest.parents < 0], len(forest.token_ids))
    return Chains(torch.from_numpy(bounds.astype(np.int32)).to(device), int(np.diff(bounds).max()))


def attend(planned: Chains, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Attend within each sequence."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, H, D]
    longest, bounds = planned.longest, planned.bounds
    causal = (-1, 0)  # as many keys before as there are, none after
    grouped = k.shape[1] != q.shape[1]
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=causal, enable_gqa=grouped)[None]
