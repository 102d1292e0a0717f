"""Estimates of KL(student || reference) from the log-probs of sampled tokens (Schulman's k1, k2, k3)."""

from collections.abc import Callable

KL_TYPES: dict[str, Callable] = {
    # log_ratio = student_logp - reference_logp at the sampled token
    "kl": lambda log_ratio: log_ratio,  # k1: unbiased, signed
    "abs": lambda log_ratio: log_ratio.abs(),
    "mse": lambda log_ratio: log_ratio.square() / 2,  # k2: its gradient is that of the KL
    "low_var_kl": lambda log_ratio: (-log_ratio).exp() - 1 + log_ratio,  # k3: unbiased, never negative
}


def kl_estimate(kl_type: str, student_logp, reference_logp):
    """Return the estimate at each token, [T]; gradients flow through `student_logp`."""
    return KL_TYPES[kl_type](student_logp - reference_logp.detach())
