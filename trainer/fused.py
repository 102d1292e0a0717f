"""The loss from hidden states, chunk by chunk: logits of [tokens, vocabulary] never exist for more than one chunk.

For each chunk of tokens the head is applied, the loss and its gradient with respect to the logits are computed, and
that gradient is turned at once into gradients of hidden states and head; the logits are thrown away. So the
backward pass of the head happens inside the forward pass, nothing is recomputed, and peak memory does not grow with
the number of tokens. (Chunking logits that exist already saves nothing: field notes C1.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 26  # logits of a chunk: 256 MiB in float32


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

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [N, V] of hidden states [N, H], without gradient for the head."""
        return self.cap(self.project(hidden))

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits before the soft cap, float32 [N, V]."""
        bias = None if self.bias is None else self.bias.detach()
        return torch.nn.functional.linear(hidden, self.weight.detach(), bias).float()

    def cap(self, logits: Tensor) -> Tensor:
        """Return the logits soft-capped if the model does so."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, dict[str, Tensor]]]


def head_loss(hidden: Tensor, head: Head, chunk_loss: ChunkLoss) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the summed loss of R tokens and their records, with gradients for `hidden`, the head's weight and bias.

    Args:
        hidden: [R, H].
        chunk_loss: (logits [n, V] float32, rows of R) -> (scalar loss, records of [n]); called under grad, once a chunk.

    Returns:
        A scalar whose backward pass only hands on the gradients computed here, and the records joined to [R].
    """
    records: list[dict[str, Tensor]] = []
    bias = head.bias if head.bias is not None else hidden.new_empty(0)
    loss = _HeadLoss.apply(hidden, head.weight, bias, head.softcap, chunk_loss, records)
    joined = {name: torch.cat([record[name] for record in records]) for name in (records[0] if records else {})}
    return loss, joined


def chunks(tokens: int, vocabulary: int) -> list[slice]:
    """Return the row ranges in which logits of `tokens` x `vocabulary` are built."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, chunk_loss, records):
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_bias = wants_bias and bias.numel() > 0
        head = Head(weight, bias if bias.numel() else None, softcap)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if wants_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for rows in chunks(len(hidden), len(weight)):
            part = hidden[rows].detach()
            with torch.enable_grad():
                leaf = head.project(part).requires_grad_()
                loss, record = chunk_loss(head.cap(leaf), rows)
            total += loss.detach()
            records.append({name: value.detach() for name, value in record.items()})
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            (logits_grad,) = torch.autograd.grad(loss, leaf)
            small = logits_grad.to(weight.dtype)
            if wants_hidden:
                hidden_grad[rows] = small @ weight.detach()
            if wants_weight:
                if weight.dtype == torch.float32:
                    weight_grad.addmm_(small.T, part)
                else:
                    weight_grad += small.T @ part
            if wants_bias:
                bias_grad += logits_grad.sum(0)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (weight.dtype, bias.dtype)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden_grad is None else hidden_grad * grad_output.to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * grad_output).to(weight_dtype),
            None if bias_grad is None else (bias_grad * grad_output).to(bias_dtype),
            None,
            None,
            None,
        )
