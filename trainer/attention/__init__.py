"""Attention over a forest, as an attention function of transformers: `attn_implementation="forest"`.

Who sees whom is the forest's. How it is computed is one of KINDS, chosen in `choose`; each has a file of its own:

    segmentwise   scaled-dot-product attention over blocks of similar segments; runs everywhere, the way on a CPU
    flex          one FlexAttention kernel over all tokens with a block mask, on CUDA
    varlen        flash attention over sequences laid end to end, on CUDA in half precision, where nothing is shared

Gradients flow in all of them (flex and varlen: on CUDA). `Forest.dense_mask` is the reference in the tests.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from trainer.attention import flex, segmentwise, varlen
from trainer.forest import Forest


@dataclass(frozen=True)
class Kind:
    """A way to run attention: `plan(forest, device)` once per micro-batch, `attend(planned, query, key, value, scaling,
    dropout)` in every layer. Query [1, Hq, T, D], key and value [1, Hk, T, D] -> [1, T, Hq, D]."""

    plan: Callable[[Forest, torch.device], Any]
    attend: Callable[[Any, Tensor, Tensor, Tensor, float | None, float], Tensor]


KINDS = {
    "segmentwise": Kind(segmentwise.plan, segmentwise.attend),
    "flex": Kind(flex.plan, flex.attend),
    "varlen": Kind(varlen.plan, varlen.attend),
}


class AttentionPlan:
    """How attention runs over one forest on one device: made once per micro-batch, used in every layer.

    The kind is known when a layer shows its queries; what the kind needs is made then, and kept for the other layers.
    """

    def __init__(self, forest: Forest, device: torch.device, kind: str | None) -> None:
        self.forest, self.device, self.kind = forest, device, kind
        self._planned: dict[str, Any] = {}

    @cached_property
    def chains(self) -> bool:
        """Whether nothing is shared: each tree is a chain of segments."""
        return varlen.is_chains(self.forest)

    def of(self, kind: str) -> Any:
        """Return what `kind` needs."""
        if kind not in self._planned:
            self._planned[kind] = KINDS[kind].plan(self.forest, self.device)
        return self._planned[kind]


def plan_attention(forest: Forest, device: torch.device | str = "cpu", *, kind: str | None = None) -> AttentionPlan:
    """Return how to run attention over `forest` on `device`; `kind` sets one of KINDS instead of the choice (tests, benchmarks)."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"no kind of attention {kind!r}; there are {', '.join(KINDS)}")
    return AttentionPlan(forest, torch.device(device), kind)


def choose(plan: AttentionPlan, query: Tensor, dropout: float = 0.0) -> str:
    """Say which of KINDS runs `query` [1, Hq, T, D]. The one place where that is decided."""
    if plan.kind is not None:
        return plan.kind
    if not query.is_cuda or dropout:
        return "segmentwise"
    if plan.chains and varlen.runs(query):
        return "varlen"
    return "flex" if flex.runs(query) else "segmentwise"


@torch.compiler.disable  # what it does differs from forest to forest: a compiled model would compile again for each
def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within `plan`: query [1, Hq, T, D], key and value [1, Hk, T, D] -> [1, T, Hq, D] (transformers' layout)."""
    if plan is None:
        raise ValueError("attn_implementation='forest' needs plan=plan_attention(forest) in the model's call")
    if kwargs.get("sliding_window") is not None or kwargs.get("softcap") is not None:
        raise ValueError("forest attention does not cover sliding windows and soft-capped attention scores")
    kind = choose(plan, query, dropout)
    return KINDS[kind].attend(plan.of(kind), query, key, value, scaling, dropout), None


AttentionInterface.register("forest", forest_attention)
