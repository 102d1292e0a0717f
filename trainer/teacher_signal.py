"""Does the teacher score successes above failures? What a training step says of it, per response and per token.

The score of a response is the mean over its tokens of teacher less student log-prob: where distillation pushes. The KL of a
token is the one-sample estimate of KL(student || teacher), student less teacher log-prob at the sampled token: unbiased,
noisy for one token, and of either sign. `analysis` asks the same of any run, context by context.

NumPy alone. What is not defined is NaN: never 0, never 1; `teacher_metrics` leaves it out.
"""

from collections.abc import Sequence

import numpy as np

from trainer.metrics import Records
from trainer.types import Sample

POSITION_BINS = 4


def teacher_metrics(samples: Sequence[Sample], records: Records) -> dict[str, float]:
    """Return the `teacher/*` numbers of one step; empty without a teacher."""
    known = {i: record["teacher_gap"] for i, record in records.items() if "teacher_gap" in record and len(record["teacher_gap"])}
    if not known:
        return {}
    passed = np.array([samples[i].passed for i in known])
    kl = [-gap for gap in known.values()]
    by_group = auc_by_group(response_means(list(known.values())), passed, [samples[i].group for i in known])
    mixed = by_group[np.isfinite(by_group)]
    out = {
        "teacher/auc": float(mixed.mean()) if len(mixed) else np.nan,
        "teacher/auc_groups": float(len(mixed)),
        **{f"teacher/kl_{verdict}": value for verdict, value in kl_by_verdict(kl, passed).items()},
        **{f"teacher/kl_position_{b + 1}": float(value) for b, value in enumerate(kl_by_position(kl, POSITION_BINS))},
        "teacher/kl_first_token": first_token_kl(kl),
    }
    return {name: value for name, value in out.items() if not np.isnan(value)}


def auc(scores: np.ndarray, success: np.ndarray) -> float:
    """Return the probability that a success scores above a failure, a tie counting half; NaN unless there are both.

    Args:
        scores: [N] floats. A NaN makes the result NaN.
        success: [N] truth values.
    """
    scores, success = np.asarray(scores, np.float64), np.asarray(success, bool)
    passed, failed = scores[success], np.sort(scores[~success])
    if not len(passed) or not len(failed) or np.isnan(scores).any():
        return float("nan")
    below, not_above = (np.searchsorted(failed, passed, side).mean() for side in ("left", "right"))
    return float((below + not_above) / (2 * len(failed)))


def auc_by_group(scores: np.ndarray, success: np.ndarray, groups: Sequence | np.ndarray) -> np.ndarray:
    """Return the AUC within each group, in the order of `numpy.unique(groups)`; NaN for groups without both verdicts.

    Pooled over prompts, `auc` also rewards knowing which prompts are easy; within a group only the responses differ.

    Args:
        scores, success: [N], as for `auc`.
        groups: [N] group of each response, numbers or strings.
    """
    scores, success = np.asarray(scores, np.float64), np.asarray(success, bool)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    return np.array([auc(scores[group == g], success[group == g]) for g in range(len(names))])


def response_means(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of each response's token values [R]; NaN for a response without tokens.

    Of `teacher_logp - student_logp` it is the score whose AUC says whether distillation pushes toward successes.
    """
    return np.array([np.mean(tokens) if len(tokens) else np.nan for tokens in values], np.float64)


def kl_by_verdict(kl: Sequence[np.ndarray], success: np.ndarray) -> dict[str, float]:
    """Return the mean per token (every token alike) over the responses that `passed` and that `failed`; NaN without any.

    Args:
        kl: R arrays of token values, in nats.
        success: [R] truth values.
    """
    success = np.asarray(success, bool)
    return {
        name: _mean([tokens for tokens, passed in zip(kl, success, strict=True) if passed == wanted])
        for name, wanted in (("passed", True), ("failed", False))
    }


def kl_by_position(kl: Sequence[np.ndarray], bins: int = 4) -> np.ndarray:
    """Return the mean per token in each of `bins` equal parts of the responses [bins], from their begin to their end.

    Token j of T lies in part floor(j * bins / T): responses of all lengths are laid over each other. NaN for a part
    without tokens (responses shorter than `bins`).
    """
    lengths = np.array([len(tokens) for tokens in kl], int)
    if not lengths.sum():
        return np.full(bins, np.nan)
    part = np.concatenate([np.arange(n) * bins // n for n in lengths if n])
    values = np.concatenate([np.asarray(tokens, np.float64) for tokens in kl])
    return divide(np.bincount(part, values, bins), np.bincount(part, minlength=bins))


def first_token_kl(kl: Sequence[np.ndarray]) -> float:
    """Return the mean over responses of their first token's value; NaN without any."""
    return _mean([tokens[:1] for tokens in kl])


def _mean(parts: Sequence[np.ndarray]) -> float:
    values = np.concatenate([np.zeros(0), *parts])
    return float(values.mean()) if len(values) else float("nan")


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b; NaN where b is 0."""
    out = np.full(np.broadcast_shapes(np.shape(a), np.shape(b)), np.nan)
    return np.divide(a, b, out=out, where=np.asarray(b) != 0)
