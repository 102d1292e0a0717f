"""Forest attention segment by segment, on torch's scaled-dot-product attention.

Each segment's queries meet its own and its ancestors' keys and nothing else, so the work is the sum of segment
length x path length, whatever the size of the forest. Segments of similar shape run together as one padded block:
on a small model the number of calls is what costs, on a large one padding is, so blocks grow only while padding
stays small. A long block runs in tiles of queries, so that of its own keys later than a tile few are computed.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.forest import Forest

PADDING_ALLOWED = 1.05  # a block may hold this much more query x key pairs than its segments need ...
SMALL_BLOCK = 1 << 17  # ... or up to this many pairs, whatever the padding
TILE = 256  # queries of a block that run together


@dataclass(frozen=True, eq=False)
class Block:
    """Segments that run together. `queries` int64 [S, m], `keys` int64 [S, k] are token indices of the forest, the
    segments' own keys in the last m columns; `mask` float32 [S, 1, m, k] is added to the scores; None where the block is
    plainly causal (root segments)."""

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks of a forest and where each token's output lies: `order` int64 [T] indexes the blocks' queries laid
    end to end."""

    blocks: tuple[Block, ...]
    order: Tensor


def plan(forest: Forest, device: torch.device) -> Blocks:
    """Group the segments of `forest` into blocks."""
    paths = [forest.ancestors(segment) for segment in range(len(forest.starts))]
    depth = [int(forest.lengths[path].sum()) if path else 0 for path in paths]
    length = [int(n) for n in forest.lengths]
    blocks, order, total = [], np.empty(len(forest.token_ids), np.int64), 0
    for members in _similar(length, depth):
        m, p = max(length[s] for s in members), max(depth[s] for s in members)
        queries = np.zeros((len(members), m), np.int64)
        keys = np.zeros((len(members), p + m), np.int64)
        hidden = np.float32(-np.inf)
        mask = np.full((len(members), 1, m, p + m), hidden) if p else None  # causality hides the padding of root segments
        for row, s in enumerate(members):
            own = np.arange(forest.starts[s], forest.starts[s] + length[s])
            above = [np.arange(forest.starts[a], forest.starts[a] + length[a]) for a in paths[s]]
            queries[row, : length[s]] = own
            keys[row, : depth[s]] = np.concatenate([*above, own[:0]])
            keys[row, p : p + length[s]] = own  # own keys in the same columns for all rows, ancestors before them
            order[own] = total + row * m + np.arange(length[s])
            if mask is not None:
                mask[row, 0, :, : depth[s]] = 0
                mask[row, 0, :, p:] = np.where(np.tri(m, dtype=bool), 0, hidden)
        total += len(members) * m
        on_device = (None if x is None else torch.from_numpy(x).to(device) for x in (queries, keys, mask))
        blocks.append(Block(*on_device))
    return Blocks(tuple(blocks), torch.from_numpy(order).to(device))


def _similar(length: list[int], depth: list[int]) -> list[list[int]]:
    """Group segments so that padding them to one shape costs little."""
    groups: list[list[int]] = []
    need = 0
    for s in sorted(range(len(length)), key=lambda s: (depth[s] == 0, -(depth[s] + length[s]), -length[s])):
        if groups and (depth[groups[-1][0]] == 0) == (depth[s] == 0):
            members = [*groups[-1], s]
            m, p = max(length[x] for x in members), max(depth[x] for x in members)
            padded = len(members) * m * (p + m)
            if padded <= SMALL_BLOCK or padded <= PADDING_ALLOWED * (need + length[s] * (depth[s] + length[s])):
                groups[-1].append(s)
                need += length[s] * (depth[s] + length[s])
                continue
        groups.append([s])
        need = length[s] * (depth[s] + length[s])
    return groups


def attend(planned: Blocks, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float) -> Tensor:
    """Attend block by block."""
    heads, dim = query.shape[1], query.shape[3]
    options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != heads}
    flat_q, flat_k, flat_v = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))  # [T, H * D]
    outputs = []
    for block in planned.blocks:
        q = _rows(flat_q, block.queries, dim)
        k, v = _rows(flat_k, block.keys, dim), _rows(flat_v, block.keys, dim)
        if block.mask is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
        else:
            out = _attend_in_tiles(q, k, v, block.mask.to(query.dtype), options)
        outputs.append(out.transpose(1, 2).flatten(0, 1).flatten(1))  # [S * m, Hq * D]
    return F.embedding(planned.order, torch.cat(outputs)).view(1, -1, heads, dim)


def _attend_in_tiles(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict) -> Tensor:
    """Attend [S, H, m, D] within [S, H, k, D], the queries a tile at a time; no tile meets own keys after its last query."""
    length, above = query.shape[2], key.shape[2] - query.shape[2]
    tiles = math.ceil(length / TILE)
    cuts = [length * i // tiles for i in range(tiles + 1)]
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, : above + end],
                value[:, :, : above + end],
                attn_mask=mask[:, :, start:end, : above + end],
                **options,
            )
            for start, end in pairwise(cuts)
        ],
        dim=2,
    )


def _rows(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather rows of [T, H * D] into [S, H, L, D]. As an embedding look-up, whose backward is the fastest on CPU."""
    return F.embedding(index, table).unflatten(-1, (-1, dim)).transpose(1, 2)
