"""Attention over a forest, as an attention function of transformers: `attn_implementation="forest"`.

Each segment's queries meet its own and its ancestors' keys and nothing else, so the work is the sum of segment
length x path length, whatever the size of the forest. Segments of similar shape run together as one padded block:
on a small model the number of calls is what costs, on a large one padding is, so blocks grow only while padding
stays small. Gradients flow. The dense mask of `Forest.dense_mask` is the reference in the tests.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from trainer.forest import Forest

PADDING_ALLOWED = 1.25  # a block may hold this much more query x key pairs than its segments need ...
SMALL_BLOCK = 1 << 17  # ... or up to this many pairs, whatever the padding


@dataclass(frozen=True, eq=False)
class Block:
    """Segments that run together. `queries` int64 [S, m], `keys` int64 [S, k] are token indices of the forest,
    `mask` bool [S, 1, m, k]; None where the block is plainly causal (one root segment, or several of one length)."""

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The blocks of a forest and where each token's output lies: `order` int64 [T] indexes the blocks' queries laid
    end to end. Made once per micro-batch, used in every layer."""

    blocks: tuple[Block, ...]
    order: Tensor


def plan_attention(forest: Forest, device: torch.device | str = "cpu") -> AttentionPlan:
    """Return how to run attention over `forest` on `device`."""
    paths = [forest.ancestors(segment) for segment in range(len(forest.starts))]
    depth = [int(forest.lengths[path].sum()) if path else 0 for path in paths]
    length = [int(n) for n in forest.lengths]
    blocks, order, total = [], np.empty(len(forest.token_ids), np.int64), 0
    for members in _similar(length, depth):
        m, p = max(length[s] for s in members), max(depth[s] for s in members)
        queries = np.zeros((len(members), m), np.int64)
        keys = np.zeros((len(members), p + m), np.int64)
        mask = np.zeros((len(members), 1, m, p + m), bool)
        for row, s in enumerate(members):
            own = np.arange(forest.starts[s], forest.starts[s] + length[s])
            above = [np.arange(forest.starts[a], forest.starts[a] + length[a]) for a in paths[s]]
            queries[row, : length[s]] = own
            keys[row, : depth[s]] = np.concatenate([*above, own[:0]])
            keys[row, p : p + length[s]] = own  # own keys in the same columns for all rows, ancestors before them
            mask[row, 0, :, : depth[s]] = True
            mask[row, 0, :, p:] = np.tri(m, dtype=bool)
            order[own] = total + row * m + np.arange(length[s])
        plain = p == 0  # padding comes after every real query, so causality alone hides it
        total += len(members) * m
        blocks.append(
            Block(
                torch.from_numpy(queries).to(device),
                torch.from_numpy(keys).to(device),
                None if plain else torch.from_numpy(mask).to(device),
            )
        )
    return AttentionPlan(tuple(blocks), torch.from_numpy(order).to(device))


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


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within `plan`: query [1, Hq, T, D], key and value [1, Hk, T, D] -> [1, T, Hq, D] (transformers' layout)."""
    if plan is None:
        raise ValueError("attn_implementation='forest' needs plan=plan_attention(forest) in the model's call")
    if kwargs.get("sliding_window") is not None or kwargs.get("softcap") is not None:
        raise ValueError("forest attention does not cover sliding windows and soft-capped attention scores")
    heads, dim = query.shape[1], query.shape[3]
    flat_q, flat_k, flat_v = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))  # [T, H * D]
    outputs = []
    for block in plan.blocks:
        q = _rows(flat_q, block.queries, dim)
        k, v = _rows(flat_k, block.keys, dim), _rows(flat_v, block.keys, dim)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=block.mask,
            dropout_p=dropout,
            is_causal=block.mask is None,
            scale=scaling,
            enable_gqa=k.shape[1] != heads,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1).flatten(1))  # [S * m, Hq * D]
    return F.embedding(plan.order, torch.cat(outputs)).view(1, -1, heads, dim), None


def _rows(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gather rows of [T, H * D] into [S, H, L, D]. As an embedding look-up, whose backward is the fastest on CPU."""
    return F.embedding(index, table).unflatten(-1, (-1, dim)).transpose(1, 2)


AttentionInterface.register("forest", forest_attention)
