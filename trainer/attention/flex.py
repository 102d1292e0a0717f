"""Forest attention as one FlexAttention kernel over all tokens.

Segments lie in preorder, so query q sees key k where `k <= q < exit_of[k]`, with exit_of[k] one past the last token below
k's segment: a mask with a single gather. Which blocks of 128 x 128 pairs the kernel leaves out, and which it runs without
looking at the mask, follows from the smallest and largest exit of each block of keys: no T x T mask is ever made.

The kernel is compiled once. The mask of each forest is a closure of the same code over another tensor, for which torch
does not compile again. Lengths are dynamic, and marked so: a length that happens to equal a number of heads would be
taken for it, and fixed with it. Tokens are padded to whole blocks, at least two: a length of one block would get a kernel
of its own, and lengths that are no multiple of the block have had wrong gradients (pytorch issue 153799).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from trainer.forest import Forest

BLOCK = 128
MIN_HEAD_DIM = 16  # the kernel's matrix products need that much


@dataclass(frozen=True, eq=False)
class Masked:
    """The mask over `length` tokens, a multiple of BLOCK; tokens after the forest's are padding that sees itself only."""

    mask: BlockMask
    length: int


def runs(query: Tensor) -> bool:
    """Say whether the kernel covers `query` [1, Hq, T, D]."""
    return query.shape[-1] >= MIN_HEAD_DIM


def plan(forest: Forest, device: torch.device) -> Masked:
    """Lay the mask of `forest` out in blocks."""
    tokens = len(forest.token_ids)
    count = max(2, -(-tokens // BLOCK))
    exit_of = np.arange(1, count * BLOCK + 1, dtype=np.int32)
    exit_of[:tokens] = np.repeat(forest.exits, forest.lengths)

    block = np.arange(count)
    exits = exit_of.reshape(count, BLOCK)
    earlier = block[None, :] < block[:, None]  # [query block, key block]
    full = earlier & (exits.min(1)[None, :] >= (block[:, None] + 1) * BLOCK)
    seen = earlier & (exits.max(1)[None, :] > block[:, None] * BLOCK)
    partial = (seen & ~full) | np.eye(count, dtype=bool)

    exit_of = _dynamic(torch.from_numpy(exit_of).to(device), 0)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < exit_of[key])

    mask = BlockMask.from_kv_blocks(*_listed(partial, device), *_listed(full, device), BLOCK_SIZE=BLOCK, mask_mod=sees)
    for part in mask.as_tuple():
        if isinstance(part, Tensor):
            _dynamic(part, *range(2, part.ndim))
    return Masked(mask, count * BLOCK)


def _listed(chosen: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has, int32 [1, 1, N], and which, first in each row, int32 [1, 1, N, N]."""
    counts, indices = chosen.sum(1), np.argsort(~chosen, axis=1, kind="stable")
    return tuple(torch.from_numpy(x.astype(np.int32))[None, None].to(device) for x in (counts, indices))


def _dynamic(tensor: Tensor, *dims: int) -> Tensor:
    """Have the kernel compiled for any size of `tensor` in `dims`."""
    torch._dynamo.maybe_mark_dynamic(tensor, dims)
    return tensor


@functools.cache
def compiled(backend: str) -> Callable[..., Tensor]:
    """Return FlexAttention compiled for any length; once per process."""
    return torch.compile(flex_attention, dynamic=True, backend=backend)


def attend(planned: Masked, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Attend under the mask. Off CUDA without a kernel and without gradients: for tests."""
    tokens, heads = query.shape[2], query.shape[1]
    padding = planned.length - tokens
    q, k, v = (_dynamic(F.pad(x, (0, 0, 0, padding)).contiguous(), 2) for x in (query, key, value))  # one layout, one kernel
    attention = compiled("inductor" if query.is_cuda else "eager")
    out = attention(q, k, v, block_mask=planned.mask, scale=scaling, enable_gqa=key.shape[1] != heads)
    return out[:, :, :tokens].transpose(1, 2).contiguous()  # laid out like the other kinds' output
