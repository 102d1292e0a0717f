"""From verdicts to mean@k, pass@k and maj@k, each with a 95 % interval over prompts.

`acc` is what the verifier reports (for code the share of tests passed), `pass` whether the response is right: for
verifiers without partial credit they are the same. pass@k is the unbiased estimator 1 - C(n - c, k) / C(n, k).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from trainer.types import Group, Outcome

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with a 95 % bootstrap interval; None where one prompt says nothing of the spread."""

    value: float
    low: float | None
    high: float | None


def pass_at_k(passed: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return the unbiased probability that one of k of n samples is right, for each count in `passed` [P]."""
    c = np.asarray(passed)
    return 1 - special.comb(n - c, k) / special.comb(n, k)


def estimate(values: np.ndarray) -> Estimate:
    """Return the mean of one value per prompt and its 95 % percentile bootstrap interval (seeded)."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return Estimate(float(values.mean()), None, None)
    if np.ptp(values) == 0:  # every resample is the same
        return Estimate(float(values.mean()), float(values.mean()), float(values.mean()))
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", vectorized=True, rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high))


def per_source(groups: Sequence[Group]) -> dict[str, dict[str, Estimate]]:
    """Return for each data source the estimates `acc/mean@n`, `acc/pass@k` for k = 1, 2, 4 .. n, `acc/maj@n`, `outcome/*`."""
    sources: dict[str, list[Group]] = {}
    for group in groups:
        sources.setdefault(group.prompt.data_source, []).append(group)
    return {source: _estimates(members) for source, members in sorted(sources.items())}


def _estimates(groups: Sequence[Group]) -> dict[str, Estimate]:
    n = len(groups[0].verdicts)
    acc = np.array([[verdict.acc for verdict in group.verdicts] for group in groups])
    reward = np.array([[verdict.reward for verdict in group.verdicts] for group in groups])
    passed = np.array([[verdict.outcome == Outcome.PASS for verdict in group.verdicts] for group in groups])
    values = {
        f"acc/mean@{n}": acc.mean(1),
        f"acc/std@{n}": acc.std(1),
        f"reward/mean@{n}": reward.mean(1),
        f"solved/mean@{n}": passed.mean(1),
    }
    for k in sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n}):
        values[f"acc/pass@{k}"] = pass_at_k(passed.sum(1), n, k)
    for outcome in Outcome:
        values[f"outcome/{outcome}"] = np.array([[verdict.outcome == outcome for verdict in group.verdicts] for group in groups]).mean(1)
    judged = [verdict for group in groups for verdict in group.verdicts if verdict.outcome != Outcome.ERROR]
    if all(verdict.pred for verdict in judged if not verdict.incorrect_format):
        values[f"acc/maj@{n}"] = np.array([_majority(group) for group in groups])
    return {name: estimate(value) for name, value in values.items()}


def _majority(group: Group) -> float:
    """Return whether the most frequent answer of a group is right, ties shared equally."""
    ballots = [verdict for verdict in group.verdicts if verdict.pred and verdict.outcome != Outcome.ERROR]
    votes = Counter(verdict.pred for verdict in ballots)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [pred for pred, count in votes.items() if count == most]
    return float(np.mean([np.mean([v.outcome == Outcome.PASS for v in ballots if v.pred == pred]) for pred in winners]))


def metrics(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """Return the logged names: val-core/<source>/acc/{mean,pass,maj}@n, the rest under val-aux, intervals as */ci_low, */ci_high."""
    out: dict[str, float] = {}
    for source, values in estimates.items():
        n = next(int(name.rsplit("@", 1)[1]) for name in values if name.startswith("acc/mean@"))
        core = {f"acc/{what}@{n}" for what in ("mean", "pass", "maj")}
        for name, value in values.items():
            prefix = f"{'val-core' if name in core else 'val-aux'}/{source}/{name}"
            out[prefix] = value.value
            if value.low is not None and value.high is not None:
                out[f"val-aux/{source}/{name}/ci_low"], out[f"val-aux/{source}/{name}/ci_high"] = value.low, value.high
    return out
