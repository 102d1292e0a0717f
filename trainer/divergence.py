"""How far the student is from the teacher at one token: the generalised Jensen-Shannon divergence.

With P the teacher, Q the student and M = (1 - alpha) Q + alpha P:

    alpha = 0        KL(P || Q)      teacher first: cover what the teacher likes
    alpha = 1        KL(Q || P)      student first: drop what the teacher dislikes
    0 < alpha < 1    (1 - alpha) KL(Q || M) + alpha KL(P || M)

The end points are not limits of the middle: as alpha goes to 0 or 1 the middle form goes to 0.
Gradients flow through Q only, its tail and its part of M included. Everything is in nats.
Sources: arXiv 2601.20802 (SDPO), behaviour 5.1-5.2; test vectors in behaviour 12.3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """Which divergence: `alpha` in [0, 1], see above; `topk` and `add_tail` as in `token_divergence`.

    Raises:
        ValueError: for an alpha outside [0, 1] or a k below 1.
    """

    alpha: float = 0.5
    topk: int | None = 100
    add_tail: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: must lie in [0, 1]")
        if self.topk is not None and self.topk < 1:
            raise ValueError(f"topk={self.topk}: must be at least 1, or None for the full vocabulary")


def token_divergence(student_logits: Tensor, teacher_logits: Tensor, *, alpha: float, topk: int | None, add_tail: bool) -> Tensor:
    """Return the divergence of each of T tokens, float [T], from whole logits: the definition.

    Training computes the same from hidden states, chunk by chunk (`trainer.fused`).

    Args:
        student_logits: [T, V], already divided by the temperature; gradients flow through these alone.
        teacher_logits: [T, V] over the same vocabulary.
        alpha: in [0, 1], see above.
        topk: compare on the student's k most likely tokens; None or k >= V is the exact full-vocabulary value.
        add_tail: put all other tokens into one more bucket, which makes the value a divergence of coarsened
            distributions (at most the exact one); False renormalises both over the k tokens, which hides what
            lies outside them.

    Raises:
        ValueError: for an alpha outside [0, 1], a k below 1 or different shapes.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)} differ in shape")
    Divergence(alpha, topk, add_tail)  # refuses what is out of range
    student, teacher = bucket_logp(student_logits, teacher_logits.detach(), topk=topk, add_tail=add_tail)
    return generalised_jsd(student, teacher, alpha)


def bucket_logp(student_logits: Tensor, teacher_logits: Tensor, *, topk: int | None, add_tail: bool) -> tuple[Tensor, Tensor]:
    """Return both models' log-probabilities over the buckets compared: [T, V], [T, k] or [T, k + 1] with the tail.

    The student chooses the k tokens; each model keeps its own full-vocabulary normaliser. The tail is the exact
    log-sum-exp of what is left, not 1 - sum p, so it neither cancels nor needs a clamp when the top k hold all mass.
    """
    if topk is None or topk >= student_logits.shape[-1]:
        return student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    indices = student_logits.detach().topk(topk, dim=-1).indices
    both = []
    for logits in (student_logits, teacher_logits):
        top = logits.gather(-1, indices)
        if not add_tail:
            both.append(top.log_softmax(-1))
            continue
        rest = _logsumexp(logits.scatter(-1, indices, -math.inf))
        both.append(torch.cat([top, rest], -1).log_softmax(-1))
    return both[0], both[1]


def generalised_jsd(student_logp: Tensor, teacher_logp: Tensor, alpha: float) -> Tensor:
    """Return the divergence over the last dimension of two log-distributions, [T, K] -> [T]."""
    if alpha == 0:
        return kl(teacher_logp, student_logp)
    if alpha == 1:
        return kl(student_logp, teacher_logp)
    mixture = _log_mixture(student_logp + math.log1p(-alpha), teacher_logp + math.log(alpha))
    return (1 - alpha) * kl(student_logp, mixture) + alpha * kl(teacher_logp, mixture)


def kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """Return KL(p || q) over the last dimension; outcomes that p rules out contribute nothing."""
    possible = p_logp > -math.inf
    log_ratio = torch.where(possible, p_logp, 0) - torch.where(possible, q_logp, 0)
    return (p_logp.exp() * log_ratio).sum(-1)


def _logsumexp(logits: Tensor) -> Tensor:
    # logsumexp has a NaN gradient over nothing but -inf (a model that rules out every word outside the top k)
    empty = logits.detach().amax(-1, keepdim=True).isneginf()
    if not empty.any():
        return logits.logsumexp(-1, keepdim=True)
    return logits.masked_fill(empty, 0).logsumexp(-1, keepdim=True).masked_fill(empty, -math.inf)


def _log_mixture(a: Tensor, b: Tensor) -> Tensor:
    # logaddexp has a NaN gradient where both are -inf (a word both models rule out)
    impossible = a.isneginf() & b.isneginf()
    return torch.logaddexp(a.masked_fill(impossible, 0), b.masked_fill(impossible, 0)).masked_fill(impossible, -math.inf)
