"""Does the teacher rank a prompt's responses as the verifier does? Metrics of scores against verdicts, as pure functions.

Used by the offline analysis and the pre-flight; what training logs of it is `trainer.teacher_signal`. Correlations and the
AUC are scipy.stats', of all groups of one size at once; the tests compare every metric with its definition written out.

What a group does not define is NaN: never 0, never 1 (issue 6). An AUC needs a success and a failure, a correlation needs
two different scores and two different rewards.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats
from scipy.special import expit

from trainer.teacher_signal import divide

METRICS = (
    "mean_spearman",
    "mean_kendall_tau",
    "pairwise_accuracy",
    "success_auc",
    "success_point_biserial",
    "success_brier_sigmoid",
    "success_brier_minmax",
    "top1_hit_rate",
)  # the published names (behaviour 8.5)
ROUNDING = 1e-9  # less is no difference: the same ranks in another order give a correlation that differs in its last bits
CELLS = 2**22  # how much of the tables of all pairs, and of the bootstrap's draws, is held at once


# ---- metrics of groups ----


def group_metrics(
    scores: np.ndarray, rewards: np.ndarray, success: np.ndarray, groups: np.ndarray, *, count: int | None = None, legacy: bool = False
) -> dict[str, np.ndarray]:
    """Return every metric of METRICS for every group, float64 [G]; NaN where it is not defined.

    With scores s, rewards r and successes y (behaviour 8.5; what this project does otherwise is marked *):

    - mean_spearman: Pearson correlation of the average ranks of s and r. *Not defined where s or r is constant.
    - mean_kendall_tau: *tau-b of s and r. Not defined where s or r is constant.
    - pairwise_accuracy: of the pairs with different rewards, the share in which s has the same order, *tied s half (with
      two rewards it is the AUC; published, a constant score has 0).
    - success_auc: of all pairs of a success and a failure, the share in which the success scores higher, ties half.
    - success_point_biserial: Pearson correlation of s and y.
    - success_brier_sigmoid: mean of (sigmoid(s) - y)^2. s is a mean log-prob, so sigmoid(s) <= .5: no calibration.
    - success_brier_minmax: the same with s scaled to [0, 1]. *Not defined where s is constant.
    - top1_hit_rate: whether the response with the highest score has the highest reward or is a success, *shared among
      those tied for the highest score. *Not defined where every response would be a hit.

    Args:
        scores, rewards: [N] finite floats.
        success: [N] truth values.
        groups: [N] integers from 0; a group of one row measures nothing.
        count: the number of groups G; default: the largest number in `groups` plus one.
        legacy: the published convention. Undefined correlations, accuracies and AUCs are 0; Kendall's tau is
            (C - D) / (C + D), which leaves tied pairs out; pairs with tied scores are wrong; constant scores are scaled
            to .5; the first of the highest scores decides top1, also where every response is a hit.

    Raises:
        ValueError: for scores or rewards that are not finite.
    """
    scores, rewards, success = np.asarray(scores, np.float64), np.asarray(rewards, np.float64), np.asarray(success, bool)
    if not (np.isfinite(scores).all() and np.isfinite(rewards).all()):
        raise ValueError("scores and rewards must be finite; leave such rows out, and count them")
    groups = np.asarray(groups, int)
    count = count if count is not None else int(groups.max(initial=-1)) + 1
    out = {name: np.full(count, np.nan) for name in METRICS}
    for rows in _blocks(groups):
        measured = _measure(scores[rows], rewards[rows], success[rows], legacy)
        for name in METRICS:
            out[name][groups[rows[:, 0]]] = measured[name]
    return out


def _blocks(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of groups of one size, [groups, size], rows of a group in their order; groups of one row are left out."""
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for size in np.unique(sizes[sizes > 1]):
        rows = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, CELLS // int(size) ** 2)
        for begin in range(0, len(rows), step):
            yield rows[begin : begin + step]


def _measure(s: np.ndarray, r: np.ndarray, y: np.ndarray, legacy: bool) -> dict[str, np.ndarray]:
    """Measure groups of one size: s, r, y [G, n] -> [G] each."""
    agree, comparable = _order(s) * _order(r), _order(r) != 0
    right = (agree > 0).sum((1, 2))
    scaled = divide(s - s.min(1, keepdims=True), np.ptp(s, axis=1)[:, None])
    rank_s, rank_r = stats.rankdata(s, axis=1), stats.rankdata(r, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)  # a constant row is not defined, so NaN
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        spearman = stats.pearsonr(rank_s, rank_r, axis=1).statistic
        biserial = stats.pearsonr(s, y.astype(np.float64), axis=1).statistic  # with y in {0, 1} it is the point-biserial one
    if legacy:
        scaled = np.nan_to_num(scaled, nan=0.5)
        tau = divide(agree.sum((1, 2), dtype=np.int64), np.abs(agree).sum((1, 2), dtype=np.int64))
        hits = (r == r.max(1, keepdims=True)) | y
        top1 = np.take_along_axis(hits, s.argmax(1)[:, None], 1)[:, 0].astype(np.float64)
    else:
        right = right + (comparable & (agree == 0)).sum((1, 2)) / 2
        tau = _tau(rank_s, rank_r)
        top1 = _top1(s, r, y)
    out = {
        "mean_spearman": spearman,
        "mean_kendall_tau": tau,
        "pairwise_accuracy": divide(right, comparable.sum((1, 2))),
        "success_auc": _auc(s, y),
        "success_point_biserial": biserial,
        "success_brier_sigmoid": np.square(expit(s) - y).mean(1),
        "success_brier_minmax": np.square(scaled - y).mean(1),
        "top1_hit_rate": top1,
    }
    return {name: np.nan_to_num(values, nan=0.0) for name, values in out.items()} if legacy else out


def _order(values: np.ndarray) -> np.ndarray:
    """Return for [G, n] who is above whom, [G, n, n]: 1 where i is above j, -1 below, 0 tied."""
    return np.sign(values[:, :, None] - values[:, None, :]).astype(np.int8)


def _tau(rank_s: np.ndarray, rank_r: np.ndarray) -> np.ndarray:
    """Return tau-b [G] of ranks [G, n]. SciPy takes one group after the other, so groups of the same ranks are measured once."""
    n = rank_s.shape[1]
    order = np.argsort(rank_s * (n + 1) + rank_r, axis=1)
    pairs, group = np.unique(np.hstack([np.take_along_axis(rank, order, 1) for rank in (rank_s, rank_r)]), axis=0, return_inverse=True)
    return stats.kendalltau(pairs[:, :n], pairs[:, n:], axis=1).statistic[group.ravel()]


def _auc(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the Mann-Whitney U of successes over failures as a share of their pairs [G]; NaN where a verdict is missing."""
    out, passed = np.full(len(s), np.nan), y.sum(1)
    for count in range(1, s.shape[1]):  # so many successes: groups alike are measured together
        rows = np.flatnonzero(passed == count)
        if len(rows):
            good, bad = s[rows][y[rows]].reshape(len(rows), -1), s[rows][~y[rows]].reshape(len(rows), -1)
            u = stats.mannwhitneyu(good, bad, axis=1, method="asymptotic").statistic  # the method is that of its p, not used
            out[rows] = u / (good.shape[1] * bad.shape[1])
    return out


def _top1(s: np.ndarray, r: np.ndarray, y: np.ndarray) -> np.ndarray:
    hits, top = (r == r.max(1, keepdims=True)) | y, s == s.max(1, keepdims=True)
    return np.where(hits.all(1), np.nan, (hits & top).sum(1) / top.sum(1))


# ---- over prompts ----


class Bootstrap:
    """95 % percentile intervals of means over prompts, of many metrics at once.

    `ask` gives an interval that `fill` fills in: all columns with the same number of prompts are resampled in one
    matrix product (how often each prompt is drawn x its value), so they share their draws, and the interval of a column
    depends on what else was asked by rounding alone. Quantiles are linearly interpolated, as published (behaviour 8.5); the
    published draws themselves are not known.
    """

    def __init__(self, resamples: int = 2000, seed: int = 12345) -> None:
        self.resamples, self.seed = resamples, seed
        self.asked: dict[bytes, tuple[np.ndarray, list[list[float | None]]]] = {}

    def ask(self, values: np.ndarray) -> list[float | None]:
        """Return [low, high] for the mean of one finite value a prompt [P], to be filled; None for less than two prompts."""
        interval: list[float | None] = [None, None]
        if len(values) > 1:
            values = np.ascontiguousarray(values, np.float64)
            self.asked.setdefault(values.tobytes(), (values, []))[1].append(interval)
        return interval

    def fill(self) -> None:
        """Fill in all intervals asked for."""
        by_length: dict[int, list[tuple[np.ndarray, list[list[float | None]]]]] = {}
        for values, intervals in self.asked.values():
            by_length.setdefault(len(values), []).append((values, intervals))
        for length, columns in by_length.items():
            low, high = np.quantile(self._means(np.stack([values for values, _ in columns]), length), (0.025, 0.975), axis=1)
            for c, (_, intervals) in enumerate(columns):
                for interval in intervals:
                    interval[:] = float(low[c]), float(high[c])
        self.asked.clear()

    def _means(self, columns: np.ndarray, length: int) -> np.ndarray:
        """Return the means of the resampled columns, [columns, P] -> [columns, resamples]."""
        rng = np.random.default_rng([self.seed, length])
        step = max(1, CELLS // length)
        out = np.empty((len(columns), self.resamples))
        for begin in range(0, self.resamples, step):
            rows = min(step, self.resamples - begin)
            drawn = rng.integers(length, size=(rows, length)) + length * np.arange(rows)[:, None]
            times = np.bincount(drawn.ravel(), minlength=rows * length).reshape(rows, length)
            out[:, begin : begin + rows] = columns @ (times.T / length)
        return out


@dataclass(frozen=True)
class Difference:
    """Second minus first on the prompts where both are defined.

    `higher`, `lower` and `equal` count the prompts by the sign of the difference; `p` is that of the two-sided sign test,
    None where no prompt differs. The interval is filled by the bootstrap it was asked of.
    """

    prompts: int
    mean: float | None
    interval: list[float | None]
    higher: int
    lower: int
    equal: int
    p: float | None


def per_prompt(values: np.ndarray, uid: np.ndarray) -> np.ndarray:
    """Return the mean of the groups' values [G] (NaN: not defined) of each prompt that defines one, in the order of `uid` [G].

    Groups of one prompt, of several steps or runs, are no independent draws: resampling and sign tests take prompts.
    """
    there = ~np.isnan(values)
    _, prompt, times = np.unique(uid[there], return_inverse=True, return_counts=True)
    return np.bincount(prompt, values[there], len(times)) / times


def paired(first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap, uid: np.ndarray | None = None) -> Difference:
    """Compare two conditions prompt by prompt: [G] values each, NaN where a group does not define one.

    Args:
        uid: [G] whose groups they are, as in `per_prompt`; default: each another prompt's.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    difference = per_prompt(difference, np.arange(len(difference)) if uid is None else uid)
    difference[np.abs(difference) < ROUNDING] = 0.0
    higher, lower = int((difference > 0).sum()), int((difference < 0).sum())
    return Difference(
        prompts=len(difference),
        mean=float(difference.mean()) if len(difference) else None,
        interval=bootstrap.ask(difference),
        higher=higher,
        lower=lower,
        equal=len(difference) - higher - lower,
        p=_sign_test(higher, lower) if higher + lower else None,
    )


@cache
def _sign_test(higher: int, lower: int) -> float:
    return float(stats.binomtest(higher, higher + lower).pvalue)
