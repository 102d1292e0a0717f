"""The loss from hidden states, chunk by chunk: logits of [tokens, vocabulary] never exist for more than one chunk.

For each chunk of tokens the heads are applied, the loss and its gradient with respect to the logits are computed
(`trainer.scores`), and that gradient is turned at once into gradients of hidden states and head; the logits are
overwritten. So the backward pass of the head happens inside the forward pass, nothing is recomputed, and peak memory
does not grow with the number of tokens. (Chunking logits that exist already saves nothing: field notes C1.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.divergence import Divergence
from trainer.scores import Block, Scores

CHUNK_BYTES = 1 << 28  # of the two buffers of logits together, where no chunk is given
DIFFERENTIABLE = ("student_logp", "entropy", "divergence")  # the scores a loss may have a gradient in
MIN_CHUNK = 16  # tokens: below that the matrix products are slow
CPU_BLOCK = 1 << 20  # logits that are scored together on a CPU: what stays in its caches


@dataclass(frozen=True, eq=False)
class Head:
    """How a model turns hidden states into logits: `weight` [V, H], optional `bias` [V], optional soft cap."""

    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    @classmethod
    def of(cls, lm: torch.nn.Module) -> "Head":
        """Return the head of a causal language model of transformers."""
        output = lm.get_output_embeddings()
        return cls(output.weight, getattr(output, "bias", None), getattr(lm.config, "final_logit_softcapping", None))

    @property
    def words(self) -> int:
        """V."""
        return len(self.weight)

    @torch.no_grad()
    def logits(self, hidden: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
        """Return logits [n, V] / temperature of hidden states [n, H], without gradient, into `out` if given.

        float32 whatever the model's dtype (float64 for float64): what follows is a softmax over a large vocabulary.
        """
        out = torch.empty(len(hidden), self.words, dtype=wide(hidden.dtype), device=hidden.device) if out is None else out
        if hidden.dtype == out.dtype:
            torch.mm(hidden, self.weight.T, out=out)
        else:
            out.copy_(hidden @ self.weight.T)
        if self.bias is not None:
            out += self.bias
        if self.softcap is not None:
            out.div_(self.softcap).tanh_().mul_(self.softcap)
        return out if temperature == 1.0 else out.div_(temperature)

    def slope(self, logits: Tensor, temperature: float) -> Tensor | None:
        """Return d logits(hidden, temperature) / d (hidden @ weight.T + bias), None where it is 1 everywhere."""
        if self.softcap is not None:
            return (logits * (temperature / self.softcap)).square_().neg_().add_(1).div_(temperature)
        return None if temperature == 1.0 else logits.new_tensor(1 / temperature)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return what logits of a model of `dtype` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def default_chunk(words: int) -> int:
    """Return how many tokens' logits exist at once if nothing else is said: two float32 buffers of `CHUNK_BYTES` together."""
    return max(MIN_CHUNK, CHUNK_BYTES // (2 * 4 * words))


def chunks(tokens: int, size: int) -> Iterator[slice]:
    """Yield the row ranges of at most `size` tokens."""
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


TokenLoss = Callable[[Scores, slice], tuple[Tensor, dict[str, Tensor]]]


def head_loss(
    hidden: Tensor,
    head: Head,
    token_loss: TokenLoss,
    *,
    targets: Tensor,
    second: tuple[Tensor, Head] | None = None,
    divergence: Divergence | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed loss of R tokens and their records, with gradients for `hidden`, the head's weight and bias.

    Args:
        hidden: [R, H], float32 or bfloat16 (float64 in tests).
        token_loss: (scores of n tokens, rows of R) -> (scalar loss, records of [n]); called under grad, its gradient
            is taken with respect to `student_logp`, `entropy` and `divergence`.
        targets: int64 [R], the sampled tokens.
        second: hidden states [R, H'] and head of the teacher or reference, without gradient.
        divergence: which divergence from the second model to compute, None for none.
        chunk: tokens whose logits exist at once; None for `default_chunk`.

    Returns:
        A scalar whose backward pass only hands on the gradients computed here, and the records joined to [R].
    """
    records: list[dict[str, Tensor]] = []
    bias = head.bias if head.bias is not None else hidden.new_empty(0)
    wanted = _Wanted(token_loss, targets, second, divergence, temperature, chunk or default_chunk(head.words), records)
    loss = _HeadLoss.apply(hidden, head.weight, bias, head.softcap, wanted)
    joined = {name: torch.cat([record[name] for record in records]) for name in (records[0] if records else {})}
    return loss, joined


@dataclass(frozen=True, eq=False)
class FusedDivergence:
    """What `fused_divergence` returns: `loss`, a scalar with gradient; all else float32 [T] without.

    `student_logp` and `teacher_logp` are None without targets.
    """

    loss: Tensor
    per_token: Tensor
    student_logp: Tensor | None
    teacher_logp: Tensor | None
    student_entropy: Tensor
    topk_mass: Tensor


def fused_divergence(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    student_head: Head | Tensor,
    teacher_head: Head | Tensor,
    *,
    alpha: float = 0.5,
    topk: int | None = 100,
    add_tail: bool = True,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
    targets: Tensor | None = None,
) -> FusedDivergence:
    """Return sum over tokens of weight x divergence(student, teacher), and what metrics want, in one pass (issue 5).

    Args:
        student_hidden: [T, H], with gradient; teacher_hidden: [T, H'].
        student_head, teacher_head: a `Head`, or its weight [V, H] and [V', H'] alone; gradients for the student's.
        alpha, topk, add_tail: see `trainer.divergence.token_divergence`, which this equals.
        weights: [T], default 1.
        chunk: tokens whose logits exist at once: memory is two buffers of [chunk, V] in float32.
        targets: int64 [T], the sampled tokens, whose log-probs are wanted.
    """
    student, teacher = (head if isinstance(head, Head) else Head(head) for head in (student_head, teacher_head))
    tokens, device = len(student_hidden), student_hidden.device
    weights = torch.ones(tokens, device=device) if weights is None else weights

    def weighted(scores: Scores, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return (scores.divergence * weights[rows]).sum(), scores.as_dict()

    loss, records = head_loss(
        student_hidden,
        student,
        weighted,
        targets=torch.zeros(tokens, dtype=torch.int64, device=device) if targets is None else targets,
        second=(teacher_hidden, teacher),
        divergence=Divergence(alpha, topk, add_tail),
        temperature=temperature,
        chunk=chunk,
    )
    nothing = student_hidden.new_empty(0, dtype=wide(student_hidden.dtype))
    return FusedDivergence(
        loss=loss,
        per_token=records.get("divergence", nothing),
        student_logp=None if targets is None else records.get("student_logp", nothing),
        teacher_logp=None if targets is None else records.get("second_logp", nothing),
        student_entropy=records.get("entropy", nothing),
        topk_mass=records.get("topk_mass", nothing),
    )


@torch.no_grad()
def sampled_logp(hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0, chunk: int | None = None) -> Tensor:
    """Return the log-probs of sampled tokens, float32 [R], from hidden states [R, H] and targets int64 [R]; no gradient."""
    parts = []
    for rows in chunks(len(hidden), chunk or default_chunk(head.words)):
        logits = head.logits(hidden[rows], temperature)
        parts.append(logits.gather(-1, targets[rows, None]).squeeze(-1) - logits.logsumexp(-1))
    return torch.cat([*parts, hidden.new_empty(0, dtype=wide(hidden.dtype))])


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What of `head_loss` no gradient is asked for."""

    token_loss: TokenLoss
    targets: Tensor
    second: tuple[Tensor, Head] | None
    divergence: Divergence | None
    temperature: float
    chunk: int
    records: list[dict[str, Tensor]]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, wanted):
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_bias = wants_bias and bias.numel() > 0
        head = Head(weight, bias if bias.numel() else None, softcap)
        dtype, words, size = wide(hidden.dtype), head.words, min(wanted.chunk, len(hidden))
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=dtype) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=dtype) if wants_bias else None
        logits = torch.empty(size, words, dtype=dtype, device=hidden.device)
        # the second model's logits make room for the gradient
        other = None if wanted.second is None else logits.new_empty(size, max(words, wanted.second[1].words))
        gradient = logits if other is None else other[:, :words]
        gradient = gradient if any(ctx.needs_input_grad[:3]) else None

        for rows in chunks(len(hidden), size or 1):
            n, part = rows.stop - rows.start, hidden[rows]
            head.logits(part, wanted.temperature, out=logits[:n])
            if wanted.second is not None:
                states, second_head = wanted.second
                second_head.logits(states[rows], wanted.temperature, out=other[:n, : second_head.words])
            for inner in chunks(n, _block_size(n, words, hidden.device)):
                total += _score(logits, other, gradient, inner, slice(rows.start + inner.start, rows.start + inner.stop), head, wanted)
            if gradient is None:
                continue
            small = gradient[:n].to(weight.dtype)
            if wants_hidden:
                torch.mm(small, weight, out=hidden_grad[rows])
            if wants_weight:
                if weight.dtype == dtype:
                    weight_grad.addmm_(small.T, part)
                else:
                    weight_grad += small.T @ part
            if wants_bias:
                bias_grad += gradient[:n].sum(0)
        ctx.gradients = hidden_grad, weight_grad, bias_grad
        ctx.dtypes = (weight.dtype, bias.dtype)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a head loss are handed on once, without a copy: compute the loss again")
        hidden_grad, weight_grad, bias_grad = ctx.gradients
        ctx.gradients, (weight_dtype, bias_dtype) = None, ctx.dtypes
        return (
            None if hidden_grad is None else hidden_grad.mul_(grad_output),
            None if weight_grad is None else weight_grad.mul_(grad_output).to(weight_dtype),
            None if bias_grad is None else bias_grad.mul_(grad_output).to(bias_dtype),
            None,
            None,
        )


def _score(logits: Tensor, other: Tensor | None, gradient: Tensor | None, inner: slice, rows: slice, head: Head, wanted: _Wanted) -> Tensor:
    """Return the loss of a block, file its records and write its gradient; `inner` are its rows of the buffers, `rows` those of R."""
    second = None if other is None else other[inner, : wanted.second[1].words]
    block = Block(logits[inner], second, wanted.targets[rows], wanted.divergence)
    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in block.scores.as_dict().items() if name in DIFFERENTIABLE}
        loss, record = wanted.token_loss(block.scores, rows)
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else [None] * len(leaves)
    wanted.records.append({name: value.detach() for name, value in record.items()})
    if gradient is not None:
        slope = head.slope(logits[inner], wanted.temperature)  # before the gradient may take the logits' place
        block.gradient(dict(zip(leaves, slopes, strict=True)), gradient[inner])
        if slope is not None:
            gradient[inner].mul_(slope)
    return loss.detach()


def _block_size(rows: int, words: int, device: torch.device) -> int:
    """Return how many tokens are scored together: on a CPU as many as stay in its caches, on a GPU the whole chunk."""
    return max(1, min(rows, CPU_BLOCK // words)) if device.type == "cpu" else max(1, rows)
