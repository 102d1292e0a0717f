"""How a batch is cut up: optimizer steps, ranks, micro-batches. What is trained does not depend on it.

Every rank gets the same number of micro-batches (empty ones included), since FSDP ranks must run the same passes or
the collectives hang. Loss weights are fixed here, over the whole optimizer batch, before anything is cut.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer import forest
from trainer.config.schema import ActorConfig
from trainer.objectives.aggregate import sequence_weights
from trainer.types import Batch, Sample


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step: `ranks[r]` are the micro-batches of rank r, each a list of positions in the batch's samples."""

    ranks: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """All optimizer steps of one training step, and the loss weight of each sample's tokens."""

    mini_batches: tuple[MiniBatch, ...]
    weights: np.ndarray

    def rank(self, rank: int) -> list[list[tuple[int, ...]]]:
        """Return the micro-batches of one rank, by optimizer step."""
        return [list(mini.ranks[rank]) for mini in self.mini_batches]


def make_plan(batch: Batch, groups: int, actor: ActorConfig, *, world_size: int, max_response_length: int) -> Plan:
    """Cut a batch of `groups` prompts into optimizer steps, ranks and micro-batches.

    Optimizer steps take `ppo_mini_batch_size` prompts each, in batch order; one without active samples is left out.
    Raises ValueError if a sample alone exceeds the token budget (the configuration rules that out).
    """
    samples = batch.samples
    weights = np.zeros(len(samples))
    minis = []
    for first in range(0, groups, actor.ppo_mini_batch_size):
        mine = [i for i, s in enumerate(samples) if first <= s.group < first + actor.ppo_mini_batch_size]
        lengths = [len(samples[i].response_ids) for i in mine]
        weights[mine] = sequence_weights(actor.loss_agg_mode, lengths, max_response_length=max_response_length)
        active = [i for i in mine if samples[i].active and weights[i] > 0]
        if not active:
            continue
        per_rank = [
            _micro_batches(share, samples, actor.ppo_max_token_len_per_gpu, actor.ppo_micro_batch_size_per_gpu)
            for share in _balance(active, samples, world_size)
        ]
        longest = max(map(len, per_rank))
        minis.append(MiniBatch(tuple(tuple(micros + [()] * (longest - len(micros))) for micros in per_rank)))
    return Plan(tuple(minis), weights)


def _balance(active: Sequence[int], samples: Sequence[Sample], ranks: int) -> list[list[int]]:
    """Spread samples over ranks by tokens, keeping groups together (they share prefixes) where that stays balanced."""
    units: dict[int, list[int]] = {}
    for i in active:
        units.setdefault(samples[i].group, []).append(i)
    parts = list(units.values())
    while True:
        shares: list[list[list[int]]] = [[] for _ in range(ranks)]
        loads = [0] * ranks
        for part in sorted(parts, key=lambda part: (-_tokens(part, samples), part)):
            rank = loads.index(min(loads))
            shares[rank].append(part)
            loads[rank] += _tokens(part, samples)
        heaviest = max(shares[loads.index(max(loads))], key=lambda part: (len(part), part))
        if max(loads) <= 1.1 * sum(loads) / ranks or len(heaviest) == 1:
            return [sorted(i for part in share for i in part) for share in shares]
        parts.remove(heaviest)
        parts += [heaviest[: len(heaviest) // 2], heaviest[len(heaviest) // 2 :]]


def _tokens(members: Sequence[int], samples: Sequence[Sample]) -> int:
    """Return the tokens the student and the second model compute for samples packed together."""
    return sum(_sides(members, samples))


def _sides(members: Sequence[int], samples: Sequence[Sample]) -> tuple[int, int]:
    """Return the tokens of samples packed together, on the student's side and on the second model's."""
    student = [(samples[i].prompt_ids, samples[i].response_ids) for i in members]
    second = [(samples[i].context_ids, samples[i].response_ids) for i in members if samples[i].context_ids is not None]
    return forest.token_count(student), forest.token_count(second) if second else 0


def _micro_batches(members: Sequence[int], samples: Sequence[Sample], budget: int, most: int | None) -> list[tuple[int, ...]]:
    """Pack a rank's samples, in order, into micro-batches of at most `budget` tokens on either side and `most` samples."""
    micros: list[list[int]] = [[]]

    def fits(part: Sequence[int]) -> bool:
        together = [*micros[-1], *part]
        return (most is None or len(together) <= most) and max(_sides(together, samples)) <= budget

    for _, group in itertools.groupby(members, key=lambda i: samples[i].group):
        whole = list(group)
        for part in [whole] if fits(whole) else [[i] for i in whole]:  # one check for most groups
            if not fits(part):
                micros.append([])
                if not fits(part):
                    raise ValueError(
                        f"rollout {samples[part[0]].index} of prompt {samples[part[0]].uid!r} does not fit into "
                        f"ppo_max_token_len_per_gpu={budget} tokens"
                    )
            micros[-1] += part
    return [tuple(micro) for micro in micros if micro]
