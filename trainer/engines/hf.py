"""The engine that needs nothing but transformers: a plain decode loop over a static KV cache.

Keys and values of a prompt are computed and kept once for all of its samples: decoding rows stand in slots of
equally many rows, and the rows of a slot read one prefix. Finished rows leave, then the rest is put into new slots.
What it simplifies: no paging and no refilling; `max_num_seqs` sequences run as one wave after the other.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from trainer.engines.base import HEARTBEAT, Engine, Response, Sampling, Settings, corner_checksum, spread
from trainer.engines.sampling import sample, uniforms
from trainer.fused import Head
from trainer.models import build_lm

GROWTH = 64  # cache columns added at a time
LEAVE_AT = 0.2  # share of finished rows at which the rest is put into new slots
SPARE = 1.25  # rows in slots per unfinished row that are tolerated for the sake of sharing prefixes


class Storage:
    """Memory for keys and values that outlives a wave: fresh pages cost more than what is computed on a small model."""

    def __init__(self) -> None:
        self.spans: dict[tuple, Tensor] = {}

    def take(self, name: tuple, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return uninitialised memory of a shape; the same name gives the same memory again."""
        size = math.prod(shape)
        span = self.spans.get(name)
        if span is None or span.numel() < size:
            self.spans[name] = span = like.new_empty(size)
        return span[:size].view(shape)


class Cache:
    """Keys and values of all layers: a prefix per slot [slots, heads, prompt, dim], own columns per row.

    `visible` bool [slots, prompt] hides the left padding of shorter prompts; None when there is none.
    """

    def __init__(self, layers: int, visible: Tensor | None, storage: Storage) -> None:
        self.visible, self.storage = visible, storage
        self.prefix: list[tuple[Tensor, Tensor]] = []
        self.own: list[tuple[Tensor, Tensor] | None] = [None] * layers  # [rows, heads, capacity, dim]
        self.length = 0  # own columns written
        self.side = 0  # old and new columns lie on different sides of the storage while they are copied
        self.prefilled = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many columns there are; asked by some models."""
        return self.length + (self.prefix[layer_idx][0].shape[2] if self.prefilled else 0)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take the new columns of a layer and return its own columns so far; called by the model's attention."""
        if not self.prefilled:
            self.prefix.append((key, value))
            return key, value
        held, end = self.own[layer_idx], self.length + 1
        if held is None or held[0].shape[2] < end:
            if layer_idx == 0:
                self.side = 1 - self.side
            self.own[layer_idx] = held = self._moved(held, None, key.shape[0], layer_idx, key)
        held[0][:, :, self.length : end] = key
        held[1][:, :, self.length : end] = value
        return held[0][:, :, :end], held[1][:, :, :end]

    def keep(self, slots: Tensor, rows: Tensor) -> None:
        """Put rows into new slots: `slots` names the old slot whose prefix each new one reads, `rows` the old rows."""
        self.visible = None if self.visible is None else self.visible[slots]
        self.prefix = [(key[slots], value[slots]) for key, value in self.prefix]
        self.side = 1 - self.side
        self.own = [None if held is None else self._moved(held, rows, len(rows), layer, held[0]) for layer, held in enumerate(self.own)]

    def _moved(
        self, held: tuple[Tensor, Tensor] | None, rows: Tensor | None, count: int, layer: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return columns with room to grow for `count` rows that hold what `held` does, of `rows` if given."""
        shape = (count, like.shape[1], self.length + GROWTH, like.shape[3])
        moved = tuple(self.storage.take((layer, side, self.side), shape, like) for side in ("key", "value"))
        if held is not None:
            for new, old in zip(moved, held, strict=True):
                written = old[:, :, : self.length]
                new[:, :, : self.length] = written if rows is None else written[rows]
        return moved


def cached_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cache: Cache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally within the prompts (prefill), or from one new token to prefix and own columns (decoding)."""
    assert cache is not None
    if not cache.prefilled:
        mask, width = None, query.shape[2]
        if cache.visible is not None:
            ones = torch.ones(width, width, dtype=torch.bool, device=query.device)
            # padding sees itself, so that no softmax is empty
            mask = (ones.tril() & cache.visible[:, None, :] | torch.eye(width, dtype=torch.bool, device=query.device))[:, None]
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
        )
        return out.transpose(1, 2), None

    prefix_key, prefix_value = cache.prefix[module.layer_idx]
    rows, heads, _, dim = query.shape
    slots, key_heads, prompt, _ = prefix_key.shape
    # heads that share a key head, and rows that share a prefix, are that many queries: nothing is repeated
    query = (query * scaling).view(rows, key_heads, -1, dim)
    by_slot = query.view(slots, -1, key_heads, heads // key_heads, dim).transpose(1, 2)  # [slots, Hk, c, G, D]
    prefix_scores = by_slot.flatten(2, 3) @ prefix_key.transpose(2, 3)  # [slots, Hk, c * G, prompt]
    if cache.visible is not None:
        prefix_scores = prefix_scores.masked_fill(~cache.visible[:, None, None, :], -torch.inf)
    prefix_scores = prefix_scores.unflatten(2, by_slot.shape[2:4]).transpose(1, 2).reshape(rows, key_heads, -1, prompt)
    scores = torch.cat([prefix_scores, query @ key.transpose(2, 3)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    by_slot = weights[..., :prompt].reshape(slots, -1, key_heads, heads // key_heads, prompt).transpose(1, 2)
    from_prefix = (by_slot.flatten(2, 3) @ prefix_value).unflatten(2, by_slot.shape[2:4]).transpose(1, 2)
    out = from_prefix.reshape(rows, key_heads, -1, dim) + weights[..., prompt:] @ value
    return out.reshape(rows, 1, heads, dim), None


AttentionInterface.register("cached", cached_attention)


class HFEngine(Engine):
    """Decodes with the transformers model itself."""

    def __init__(
        self,
        path: str,
        *,
        stop_ids: Sequence[int],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        settings: Settings = Settings(),  # noqa: B008  frozen
    ) -> None:
        self.device, self.dtype, self.max_num_seqs = torch.device(device), dtype, settings.max_num_seqs
        self.lm = build_lm(path, attention="cached", dtype=dtype, trust_remote_code=settings.trust_remote_code).to(self.device)
        self.stop = torch.tensor(list(stop_ids), device=self.device)
        self.storage = Storage()

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = dict(self.lm.named_parameters())
        if own.keys() != weights.keys():
            odd = sorted(own.keys() ^ weights.keys())[:3]
            raise ValueError(f"weights do not fit the sampler's model: {', '.join(odd)} on one side only")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])

    def watched(self) -> list[str]:
        return spread([name for name, _ in self.lm.named_parameters()])

    def checksums(self) -> dict[str, int]:
        own = dict(self.lm.named_parameters())
        return {name: corner_checksum(own[name], self.dtype) for name in self.watched()}

    def sleep(self) -> None:
        if self.device.type == "cuda":
            self.storage = Storage()

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        by_length = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
        wanted = [(p, s) for p in by_length for s in range(len(seeds[p]))]
        for start in range(0, len(wanted), self.max_num_seqs):
            wave = wanted[start : start + self.max_num_seqs]
            draws = uniforms([seeds[p][s] for p, s in wave], sampling.max_tokens)
            yield from self._wave(wave, prompts, torch.from_numpy(draws).to(self.device), sampling)

    @torch.inference_mode()
    def _wave(
        self, names: list[tuple[int, int]], prompts: Sequence[np.ndarray], draws: Tensor, sampling: Sampling
    ) -> Iterator[list[Response]]:
        """Decode the responses called `names` (prompt, sample) together; yield them as they finish."""
        distinct = list(dict.fromkeys(p for p, _ in names))
        prompt_of = np.array([distinct.index(p) for p, _ in names])
        cache, first_logits, prompt_lengths = self._prefill([prompts[p] for p in distinct])
        nobody = len(names)  # spare rows write to this line
        ids = torch.empty(nobody + 1, sampling.max_tokens, dtype=torch.int32, device=self.device)
        logps = torch.empty(nobody + 1, sampling.max_tokens, device=self.device)
        draws = torch.cat([draws, draws[:1]])

        rows, slots = _arrange(np.arange(nobody), prompt_of, nobody)
        cache.keep(self._index(slots), self._index([]))
        per_row = self._index(np.repeat(slots, len(rows) // len(slots)))
        who, lengths, logits = self._index(rows), prompt_lengths[per_row], first_logits[per_row]
        running, heard = rows != nobody, time.monotonic()
        for position in range(sampling.max_tokens):
            if time.monotonic() - heard > HEARTBEAT:
                heard = time.monotonic()
                yield []
            token, logp = sample(logits, draws[who, position], sampling)
            ids[who, position], logps[who, position] = token.int(), logp
            ended = torch.isin(token, self.stop).cpu().numpy() & running
            last = position + 1 == sampling.max_tokens
            for done, finished in ((ended, True), (running & ~ended & last, False)):
                if done.any():
                    yield [self._response(names[r], ids[r, : position + 1], logps[r, : position + 1], finished) for r in rows[done]]
            running &= ~ended
            if last or not running.any():
                return
            if running.sum() <= (1 - LEAVE_AT) * len(rows):
                left, old_rows, old_slots = rows[running], rows, slots
                rows, slots = _arrange(left, prompt_of, nobody)
                source = self._index([int(np.argmax(old_rows == r)) for r in rows])
                cache.keep(self._index([int(np.argmax(old_slots == p)) for p in slots]), source)
                who, token, lengths = (
                    self._index(rows),
                    token[source],
                    prompt_lengths[self._index(np.repeat(slots, len(rows) // len(slots)))],
                )
                running = rows != nobody
            logits = self._forward(token[:, None], (lengths + position)[:, None], cache)

    def _index(self, values: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.int64), device=self.device)

    @staticmethod
    def _response(name: tuple[int, int], ids: Tensor, logps: Tensor, finished: bool) -> Response:
        return Response(*name, ids.cpu().numpy().copy(), logps.cpu().numpy().copy(), finished)

    def _prefill(self, prompts: Sequence[np.ndarray]) -> tuple[Cache, Tensor, Tensor]:
        """Run each prompt once; return the cache, the logits after each prompt [P, V] and the prompt lengths [P]."""
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        width = int(lengths.max())
        ids = np.zeros((len(prompts), width), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
        columns = torch.arange(width, device=self.device)[None, :] - (width - lengths)[:, None]
        visible = columns >= 0
        cache = Cache(self.lm.config.num_hidden_layers, None if bool(visible.all()) else visible, self.storage)
        logits = self._forward(torch.from_numpy(ids).to(self.device), columns.clamp(min=0), cache)
        cache.prefilled = True
        return cache, logits, lengths

    def _forward(self, ids: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Run tokens [B, N] through the model and return the logits after the last, float32 [B, V]."""
        out = self.lm.base_model(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, cache=cache)
        if cache.prefilled:
            cache.length += 1
        return Head.of(self.lm).logits(out.last_hidden_state[:, -1])


def _arrange(responses: np.ndarray, prompt_of: np.ndarray, nobody: int) -> tuple[np.ndarray, np.ndarray]:
    """Put responses into slots of equally many rows, each slot with the prefix of one prompt.

    Returns which response stands in each row (`nobody` in spare ones) and which prompt each slot reads. Slots are as
    wide as they can be without more than SPARE rows per response; with one row a slot nothing is spare.
    """
    members = {p: [r for r in responses if prompt_of[r] == p] for p in dict.fromkeys(prompt_of[responses])}
    for width in range(max(map(len, members.values())), 0, -1):
        slots = [(p, mine[i : i + width]) for p, mine in members.items() for i in range(0, len(mine), width)]
        if len(slots) * width <= SPARE * len(responses):
            break
    rows = np.full((len(slots), width), nobody)
    for slot, (_, mine) in enumerate(slots):
        rows[slot, : len(mine)] = mine
    return rows.reshape(-1), np.array([p for p, _ in slots])
