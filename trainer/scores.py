"""What a loss uses of a block of logits, and the way back to them, both in closed form.

Of a distribution over the whole vocabulary every objective here uses the same few numbers per token: the log-prob of
the sampled token, the entropy, the divergence from a second model. `Block` computes them and, given the gradient of a
loss with respect to these numbers, that with respect to the logits; so no objective handles anything as wide as the
vocabulary, and nothing as wide is kept for a backward pass. With p the student's probabilities:

    d logp[target] / dz = 1[target] - p                      d entropy / dz = -p (log p + entropy)
    d KL(P || Q)   / dz = p - q                              d KL(Q || P)   / dz = p (r - sum p r),  r = log p - log q
    d JSD          / dz = (1 - alpha) p (r - sum p r),  r = log p - log m

(q the teacher's, m the mixture). Over the top k and a tail the gradient with respect to the k + 1 buckets is
autograd's of `trainer.divergence`; the tail hands its own on in proportion to exp(z). `trainer.divergence` is the
definition the tests compare with.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainer.divergence import Divergence, generalised_jsd


@dataclass(frozen=True, eq=False)
class Scores:
    """What is known of R tokens, each float32 [R], in nats. A loss is a function of these.

    `student_logp` and `second_logp` are the log-probs of the sampled tokens, `entropy` the student's, `divergence`
    that of the student from the second model, `topk_mass` the student's probability of the k words compared. None:
    no second model, no divergence asked for.
    """

    student_logp: Tensor
    entropy: Tensor
    second_logp: Tensor | None = None
    divergence: Tensor | None = None
    topk_mass: Tensor | None = None

    def as_dict(self) -> dict[str, Tensor]:
        """Return what is known by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


class Block:
    """The scores of b tokens, and the gradient of their logits.

    Args:
        logits: [b, V], soft-capped and divided by the temperature.
        second_logits: the second model's, [b, V'], likewise; overwritten. None: no second model.
        targets: int64 [b], the sampled tokens.
        divergence: which one is wanted; needs `second_logits`. Vocabularies padded to different sizes are compared
            over their common words.
    """

    def __init__(self, logits: Tensor, second_logits: Tensor | None, targets: Tensor, divergence: Divergence | None) -> None:
        self.logits, self.targets, self.spec = logits, targets[:, None], divergence
        second_logp = None if second_logits is None else second_logits.gather(-1, self.targets)
        distance = mass = None
        if divergence is None:
            second_norm = None if second_logits is None else _log_sum_exp(second_logits)
            self._measure()
        else:
            assert second_logits is not None, "a divergence needs the second model's logits"
            self.words = words = min(logits.shape[-1], second_logits.shape[-1])
            whole_norm = _log_sum_exp(second_logits.clone()) if words < second_logits.shape[-1] else None
            over_topk = divergence.topk is not None and divergence.topk < words
            compare = self._over_topk if over_topk else self._over_all_words
            second_norm, distance, mass = compare(logits[:, :words], second_logits[:, :words])
            second_norm = second_norm if whole_norm is None else whole_norm
            if words < logits.shape[-1]:
                self._measure()
        self.scores = Scores(
            student_logp=(logits.gather(-1, self.targets) - self.norm).squeeze(-1),
            entropy=self.entropy.squeeze(-1),
            second_logp=None if second_logp is None else (second_logp - second_norm).squeeze(-1),
            divergence=distance,
            topk_mass=mass,
        )

    def _measure(self) -> None:
        """Set the student's log normaliser and entropy, [b, 1]."""
        top = _finite(self.logits.amax(-1, keepdim=True))
        below = self.logits - top
        weight = below.exp()
        total = weight.sum(-1, keepdim=True)
        self.norm = top + total.log()
        self.entropy = total.log() - _expect(weight, below) / total

    def _over_topk(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare over the student's k most likely words and, if asked for, a tail."""
        spec = self.spec
        values, words = mine.topk(spec.topk + 1, -1)
        # the (k + 1)-th is the largest of the rest: exp relative to it neither overflows nor vanishes
        top, words, largest = values[:, :-1], words[:, :-1], _finite(values[:, -1:])
        their_top = theirs.gather(-1, words)
        their_rest = _log_sum_exp(theirs.scatter_(-1, words, -torch.inf))
        their_norm = torch.logaddexp(their_top.logsumexp(-1, keepdim=True), their_rest)

        rest = torch.sub(mine, largest, out=theirs).exp_().scatter_(-1, words, 0)
        total = rest.sum(-1, keepdim=True)
        log_rest, log_top = largest + total.log(), top.logsumexp(-1, keepdim=True)
        self.norm = torch.logaddexp(log_top, log_rest)
        log_p = top - self.norm
        of_rest = torch.where(total > 0, (log_rest - self.norm).exp() * (self.norm - _expect(rest, mine) / total), 0)
        self.entropy = of_rest - _expect(log_p.exp(), log_p)

        buckets = torch.cat([top, log_rest], -1) if spec.add_tail else top.clone()
        their_buckets = torch.cat([their_top, their_rest], -1) if spec.add_tail else their_top
        with torch.enable_grad():
            leaf = buckets.requires_grad_()
            distance = generalised_jsd(leaf.log_softmax(-1), their_buckets.log_softmax(-1), spec.alpha)
            (slope,) = torch.autograd.grad(distance.sum(), leaf)

        def gradient(scale: Tensor, into: Tensor) -> None:
            if spec.add_tail:
                torch.mul(rest, torch.where(total > 0, slope[:, -1:] / total, 0) * scale, out=into)
            else:
                into.zero_()
            into.scatter_(-1, words, slope[:, : spec.topk] * scale)

        self._divergence_gradient = gradient
        return their_norm, distance.detach(), (log_top - self.norm).exp().squeeze(-1)

    def _over_all_words(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare over every word."""
        alpha = self.spec.alpha
        norm, their_norm = mine.logsumexp(-1, keepdim=True), theirs.logsumexp(-1, keepdim=True)
        log_p, log_q = mine - norm, theirs.sub_(their_norm)
        p, q = log_p.exp(), log_q.exp()
        self.norm, self.entropy = norm, -_expect(p, log_p)
        if alpha == 0:
            distance = _expect(q, log_q - log_p)
        else:
            if alpha == 1:
                log_m = log_q
            else:  # words both models make vanish have weight 0, whatever their logarithm
                log_m = torch.lerp(p, q, alpha).clamp_(min=torch.finfo(p.dtype).tiny).log_()
                theirs_apart = _expect(q, log_q - log_m)
            ratio = log_p.sub_(log_m)
            mine_apart = _expect(p, ratio)
            distance = mine_apart if alpha == 1 else (1 - alpha) * mine_apart + alpha * theirs_apart

        def gradient(scale: Tensor, into: Tensor) -> None:
            if alpha == 0:
                torch.sub(p, q, out=into).mul_(scale)
            else:
                torch.sub(ratio, mine_apart, out=into).mul_(p).mul_(scale * (1 if alpha == 1 else 1 - alpha))
                into.masked_fill_(p == 0, 0)

        self._divergence_gradient = gradient
        return their_norm, distance.squeeze(-1), torch.ones_like(distance).squeeze(-1)

    def gradient(self, by_score: dict[str, Tensor | None], into: Tensor) -> None:
        """Write d loss / d logits into `into`, [b, V], given d loss / d score by name, each [b] or None.

        `into` may be the memory of the logits or of the second model's; a block gives its gradient once.
        """
        distance, logp, spread = (by_score.get(name) for name in ("divergence", "student_logp", "entropy"))
        policy = None
        if logp is not None or spread is not None:
            log_p = self.logits - self.norm
            policy = log_p.exp()
            slope = 0 if logp is None else logp[:, None]
            if spread is not None:
                slope = slope + spread[:, None] * log_p.add_(self.entropy).masked_fill_(policy == 0, 0)
            policy.mul_(slope).neg_()
            if logp is not None:
                policy.scatter_add_(-1, self.targets, logp[:, None])
        if distance is None:
            into.zero_() if policy is None else into.copy_(policy)
            return
        self._divergence_gradient(distance[:, None], into[:, : self.words])
        into[:, self.words :].zero_()
        if policy is not None:
            into.add_(policy)


def _finite(top: Tensor) -> Tensor:
    """Return the maxima, 0 where every word is ruled out: -inf less -inf would be NaN."""
    return torch.where(top.isneginf(), 0, top)


def _log_sum_exp(logits: Tensor) -> Tensor:
    """Return the log normalisers [b, 1] of [b, V], whose memory is used up."""
    top = _finite(logits.amax(-1, keepdim=True))
    return top + logits.sub_(top).exp_().sum(-1, keepdim=True).log()


def _expect(weight: Tensor, values: Tensor) -> Tensor:
    """Return the sums of weight x values, [b, 1]; what has no weight contributes nothing, infinite or not."""
    total = (weight * values).sum(-1, keepdim=True)
    if total.isnan().any():
        total = (weight * values.masked_fill(weight == 0, 0)).sum(-1, keepdim=True)
    return total
