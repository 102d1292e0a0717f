"""Does the teacher rank a prompt's responses as the verifier does? Metrics of scores against verdicts, as pure functions.

Used by the offline analysis and the pre-flight; what training logs of it is `trainer.teacher_signal`. It imports NumPy
alone: `scipy.stats` takes most of a second to import, and half a millisecond a group where thousands of groups are
measured. Groups of one size are measured together; all rank metrics follow from one table per group, who scores above
whom. The tests compare each with `scipy.stats` and with its definition written out.

What a group does not define is NaN: never 0, never 1 (issue 6). An AUC needs a success and a failure, a correlation needs
two different scores and two different rewards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

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
    above, better = _order(s), _order(r)
    agree = (above * better).sum((1, 2), dtype=np.int64)  # 2 (concordant - discordant)
    untied_s, untied_r = np.abs(above).sum((1, 2), dtype=np.int64), np.abs(better).sum((1, 2), dtype=np.int64)
    pairs = y[:, :, None] & ~y[:, None, :]
    spread = np.ptp(s, axis=1)
    scaled = divide(s - s.min(1, keepdims=True), spread[:, None])
    right = (above * better > 0).sum((1, 2))
    if legacy:
        scaled = np.nan_to_num(scaled, nan=0.5)
        tau = divide(agree, np.abs(above * better).sum((1, 2), dtype=np.int64))
        hits = (r == r.max(1, keepdims=True)) | y
        top1 = np.take_along_axis(hits, s.argmax(1)[:, None], 1)[:, 0].astype(np.float64)
    else:
        right = right + ((above == 0) & (better != 0)).sum((1, 2)) / 2
        tau = divide(agree, np.sqrt(untied_s * untied_r.astype(np.float64)))
        top1 = _top1(s, r, y)
    out = {
        # a row's sum over `above` is twice its average rank, up to a constant that the correlation does not see
        "mean_spearman": _pearson(above.sum(2, dtype=np.float64), better.sum(2, dtype=np.float64)),
        "mean_kendall_tau": tau,
        "pairwise_accuracy": divide(right, untied_r),
        "success_auc": divide(((1 + above) * pairs).sum((1, 2), dtype=np.int64), 2 * pairs.sum((1, 2))),
        "success_point_biserial": _pearson(_centred(s), _centred(y.astype(np.float64))),
        "success_brier_sigmoid": np.square(np.exp(-np.logaddexp(0, -s)) - y).mean(1),
        "success_brier_minmax": np.square(scaled - y).mean(1),
        "top1_hit_rate": top1,
    }
    return {name: np.nan_to_num(values, nan=0.0) for name, values in out.items()} if legacy else out


def _order(values: np.ndarray) -> np.ndarray:
    """Return for [G, n] who is above whom, [G, n, n]: 1 where i is above j, -1 below, 0 tied."""
    i, j = values[:, :, None], values[:, None, :]
    return (i > j).astype(np.int8) - (i < j)


def _top1(s: np.ndarray, r: np.ndarray, y: np.ndarray) -> np.ndarray:
    hits, top = (r == r.max(1, keepdims=True)) | y, s == s.max(1, keepdims=True)
    return np.where(hits.all(1), np.nan, (hits & top).sum(1) / top.sum(1))


def _centred(values: np.ndarray) -> np.ndarray:
    """Take the mean from each row; a constant row becomes exactly 0, whatever its mean rounds to."""
    return np.where(np.ptp(values, axis=1, keepdims=True) == 0, 0.0, values - values.mean(1, keepdims=True))


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlate centred rows; NaN where one is constant."""
    return divide((a * b).sum(1), np.sqrt(np.square(a).sum(1)) * np.sqrt(np.square(b).sum(1)))


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


def paired(first: np.ndarray, second: np.ndarray, bootstrap: Bootstrap) -> Difference:
    """Compare two conditions prompt by prompt: [P] values each, NaN where a prompt does not define one."""
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    difference = difference[~np.isnan(difference)]
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
    from scipy.stats import binomtest  # here: see above

    return float(binomtest(higher, higher + lower).pvalue)
