"""Importance weights: the sampler's distribution and the student's are not the same, the loss accounts for it."""

import math

import torch
from torch import Tensor

from trainer.objectives.base import Tokens


def truncated_ratio(log_ratio: Tensor, cap: float) -> Tensor:
    """Return min(exp(log_ratio), cap), detached (truncated importance sampling; behaviour 3.4). Cannot overflow."""
    return log_ratio.detach().clamp(max=math.log(cap)).exp()


def sampler_weight(tokens: Tokens, student_logp: Tensor, *, mode: str | None, cap: float) -> Tensor:
    """Return the weight of each token against the sampler, [R].

    `token` weighs by the ratio of that token, `sequence` by the product over the whole response, None by 1. The
    ratio is of the student before the step, which is the student itself when there is one optimizer step.
    """
    if mode is None:
        return torch.ones_like(tokens.sampler_logp)
    if mode == "sequence":
        assert tokens.sequence_log_ratio is not None, "sequence weights need the log ratio of whole sequences"
        return truncated_ratio(tokens.sequence_log_ratio, cap)
    before = student_logp if tokens.old_logp is None else tokens.old_logp
    return truncated_ratio(before - tokens.sampler_logp, cap)


def update_ratio(tokens: Tokens, student_logp: Tensor) -> Tensor:
    """Return student / student-before-the-step at each token, [R], with gradient; exactly 1 in value when on-policy."""
    before = student_logp.detach() if tokens.old_logp is None else tokens.old_logp
    return (student_logp - before).exp()
