"""From the measures of each prompt to those of a run: means, differences between runs on common prompts, correlations.

Every interval is a 95 % percentile bootstrap over prompts, seeded. What is undefined for a prompt is None there, left out
of means and counted, never taken as 0.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trainer.validation import RESAMPLES, Estimate, estimate

Row = dict[str, Any]

DISTANCE = "pairwise_text_distance"  # the measure of the correlations and case studies
FEW = 10  # prompts; from fewer a bootstrap says little, and of a correlation nothing
KEYS = ("method", "prompt_id", "difficulty_bucket", "step")


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the measures in rows of prompts."""
    return [name for name in rows[0] if name not in KEYS]


def defined(rows: Sequence[Row], *metrics: str) -> np.ndarray:
    """Return the values of the metrics, float64 [metrics, prompts], of the prompts for which all of them are defined."""
    kept = [row for row in rows if all(row[metric] is not None for metric in metrics)]
    return np.array([[row[metric] for row in kept] for metric in metrics], np.float64)


def summarise(rows: Sequence[Row], k: int | None) -> Row:
    """Return for one run NAME_mean, NAME_std (population), NAME_ci [low, high] and NAME_count (prompts) of each measure.

    Also the correlations of text distance, of all and of successful responses, with pass@k.
    """
    out: Row = {"method": rows[0]["method"], "prompt_count": len(rows)}
    for metric in metric_names(rows):
        (values,) = defined(rows, metric)
        found = estimate(values) if len(values) else None
        out |= {
            f"{metric}_mean": found and found.value,
            f"{metric}_std": float(values.std()) if len(values) else None,
            f"{metric}_ci": interval(found),
            f"{metric}_count": len(values),
        }
    for metric in (DISTANCE, f"success_{DISTANCE}"):
        if k is not None:
            x, y = defined(rows, metric, f"pass@{k}")
            found = correlation(x, y)
            name = f"corr_{metric}_vs_pass@{k}"
            out |= {name: found and found.value, f"{name}_ci": interval(found), f"{name}_count": len(x)}
    return out


def interval(found: Estimate | None) -> list[float] | None:
    """Return [low, high] of an estimate, None where it has no interval."""
    return None if found is None or found.low is None else [found.low, found.high]


def correlation(x: np.ndarray, y: np.ndarray) -> Estimate | None:
    """Return Pearson's r of two values per prompt; None for fewer than three prompts or where one of them does not vary.

    No interval for fewer than `FEW` prompts, nor where one of the two is so nearly constant that it does not vary in over
    5 % of the resamples: they have no r, and the rest would make an interval that is too narrow.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r = float(_pearson(x, y))
    drawn = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    drawn = drawn[(np.ptp(x[drawn], axis=1) > 0) & (np.ptp(y[drawn], axis=1) > 0)]
    if len(x) < FEW or len(drawn) < 0.95 * RESAMPLES:
        return Estimate(r, None, None)
    low, high = np.quantile(_pearson(x[drawn], y[drawn]), (0.025, 0.975))
    return Estimate(r, float(low), float(high))


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def paired_differences(runs: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Return for each pair of runs and each measure the mean difference, the later run minus the earlier one.

    Over the prompts that both have and for which both define the measure; `count` of them.
    """
    out = []
    for (versus, before), (method, after) in combinations(runs.items(), 2):
        earlier = {row["prompt_id"]: row for row in before}
        pairs = [(earlier[row["prompt_id"]], row) for row in after if row["prompt_id"] in earlier]
        for metric in metric_names(after):
            differences = [b[metric] - a[metric] for a, b in pairs if a[metric] is not None and b[metric] is not None]
            found = estimate(np.array(differences)) if differences else None
            out.append(
                {
                    "metric": metric,
                    "method": method,
                    "minus": versus,
                    "mean_difference": found and found.value,
                    "ci": interval(found),
                    "count": len(differences),
                }
            )
    return out


def case_studies(runs: Mapping[str, Sequence[Row]], k: int | None, top: int) -> list[Row]:
    """Return the `top` prompts on which two runs differ most in text distance, the widest gap first.

    `high_pass` and `low_pass` (published names) are pass@k, as the same fields with @k beside them say.
    """
    prompts: dict[str, list[Row]] = {}
    for row in (row for rows in runs.values() for row in rows):
        if row[DISTANCE] is not None:
            prompts.setdefault(row["prompt_id"], []).append(row)
    found = []
    for prompt_id, rows in prompts.items():
        if len(rows) > 1:
            low, *_, high = sorted(rows, key=lambda row: row[DISTANCE])
            case: Row = {"prompt_id": prompt_id, "difficulty_bucket": high["difficulty_bucket"]}
            for end, row in (("high", high), ("low", low)):
                case |= {f"{end}_method": row["method"], f"{end}_diversity": row[DISTANCE]}
                if k is not None:
                    case |= {f"{end}_pass": row[f"pass@{k}"], f"{end}_pass@{k}": row[f"pass@{k}"]}
            found.append({**case, "diversity_gap": high[DISTANCE] - low[DISTANCE]})
    return sorted(found, key=lambda case: (-case["diversity_gap"], case["prompt_id"]))[:top]


def common_k(rows: Sequence[Row], ks: Sequence[int]) -> int | None:
    """Return the largest k for which pass@k is defined for every prompt; None if there is none."""
    return max((k for k in ks if all(row[f"pass@{k}"] is not None for row in rows)), default=None)
