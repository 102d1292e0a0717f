"""How many bytes a pass over a model holds, found by running it without data and without memory.

The pass runs on torch's meta device, where a tensor is its shape. Every storage an operation makes is counted for as
long as it lives, so what autograd keeps and what a layer needs in passing is the model's own code's doing, whatever
the architecture. One and two layers are run; the others are as large as the second. Attention alone is a stand-in,
with the tensors that `trainer.attention` makes of a forest.
"""

import copy
import weakref
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.initialization import no_init_weights

LARGE = 32 << 20  # bytes from which on the C library takes memory from the system for a tensor alone, and gives it back with it
WORDS = 8  # of the small vocabulary passes are run with: embeddings and head are counted by formula


@dataclass(frozen=True)
class Architecture:
    """A model's configuration, equal to others that say the same: what is asked of it is found once per process."""

    config: Any = field(compare=False)
    trust_remote_code: bool = False
    says: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "says", self.config.to_json_string())


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters: of the whole model, of its largest layer, and of what is in no layer (`root`: embeddings,
    head, last norm). The head is [`words`, `width`]."""

    parameters: int
    layer: int
    root: int
    words: int
    width: int


@dataclass(frozen=True)
class Attended:
    """What attention over a micro-batch of `tokens` copies in every layer: rows of queries, rows of keys and of values
    (more than tokens where segments that share ancestors run one by one), and numbers of a mask."""

    tokens: int
    queries: int
    keys: int
    mask: int = 0


@dataclass(frozen=True)
class Pass:
    """Bytes beyond the parameters: `saved` after the forward pass, and the peaks of both passes beyond that. `small` is the
    peak of tensors below LARGE alone."""

    saved: int
    forward: int
    backward: int
    small: int


@cache
def sizes(model: Architecture) -> Sizes:
    """Return the exact numbers of parameters; nothing is allocated."""
    lm = _shapes(model.config, torch.float32, "eager", model.trust_remote_code)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in lm.base_model.layers]
    parameters = sum(p.numel() for p in lm.parameters())
    return Sizes(parameters, max(layers), parameters - sum(layers), *lm.get_output_embeddings().weight.shape)


@cache
def of_pass(model: Architecture, dtype: torch.dtype, attended: Attended, *, grad: bool, checkpointing: bool = False) -> Pass:
    """Return the bytes of one pass of the model's body (embeddings and layers, no head) in `dtype`, backwards too with `grad`."""

    def run(layers: int, backwards: bool) -> tuple[Pass, int]:
        lm = _small(model, layers, dtype).requires_grad_(grad).train(grad)
        if checkpointing:
            lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False})
        return _run(lm, attended, grad, backwards)

    layers = model.config.num_hidden_layers
    few, few_small = run(min(2, layers), grad)
    layer = layer_small = 0
    if grad and layers > 2:
        one, one_small = run(1, False)
        layer, layer_small = few.saved - one.saved, few_small - one_small
    return Pass(few.saved + (layers - 2) * layer, few.forward, few.backward, few.small + (layers - 2) * layer_small)


def _small(model: Architecture, layers: int, dtype: torch.dtype) -> nn.Module:
    """Return the model with few layers and words."""
    small = copy.deepcopy(model.config)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = layers, WORDS, None
    if getattr(small, "layer_types", None):
        small.layer_types = (small.layer_types * 2)[:layers]  # all alike, or the model would have been refused
    return _shapes(small, dtype, "counted", model.trust_remote_code)


def _run(lm: nn.Module, attended: Attended, grad: bool, backwards: bool) -> tuple[Pass, int]:
    """Return the bytes of a pass, and how many of those saved are in small tensors."""
    for parameter in lm.parameters():
        if grad:  # counted by formula, as shards
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    ids = torch.zeros(1, attended.tokens, dtype=torch.int64, device="meta")
    live = Live([*lm.parameters(), *lm.buffers()])
    with live, torch.set_grad_enabled(grad):
        hidden = lm.base_model(input_ids=ids, position_ids=ids.clone(), use_cache=False, plan=attended).last_hidden_state
        saved, forward, small = live.bytes, live.peak, live.small
        live.peak = saved
        if backwards:
            torch.autograd.backward(hidden, torch.empty_like(hidden))
    return Pass(saved, forward - saved, live.peak - saved, live.small_peak), small


def _shapes(model_config: Any, dtype: torch.dtype, attention: str, trust_remote_code: bool) -> nn.Module:
    """Return the model on the meta device."""
    with torch.device("meta"), no_init_weights():
        lm = AutoModelForCausalLM.from_config(
            copy.deepcopy(model_config), dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
        )
    lm.tie_weights()
    return lm


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live, the `small` ones apart; `held` are there already."""

    def __init__(self, held: list[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = self.small = self.small_peak = 0
        self.held = [tensor.untyped_storage() for tensor in held]
        self.sizes = {storage._cdata: 0 for storage in self.held}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    self._count(storage.nbytes())
                    weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, name: int) -> None:
        self._count(-self.sizes.pop(name))

    def _count(self, size: int) -> None:
        self.bytes += size
        self.small += size if abs(size) < LARGE else 0
        self.peak, self.small_peak = max(self.peak, self.bytes), max(self.small_peak, self.small)


class _Attention(torch.autograd.Function):
    """Makes and keeps what `trainer.attention` does: queries, keys, values [1, H, T, D] -> [1, T, Hq, D]."""

    @staticmethod
    def forward(ctx, query, key, value, attended):
        rows = (attended.queries, attended.keys, attended.keys)
        copies = [x.new_empty(n, x.shape[1], x.shape[3]) for x, n in zip((query, key, value), rows, strict=True)]
        out, normaliser = torch.empty_like(copies[0]), query.new_empty(attended.queries, query.shape[1], dtype=torch.float32)
        ctx.save_for_backward(*copies, out, normaliser, query.new_empty(attended.mask))
        ctx.shapes = [x.shape for x in (query, key, value)]
        joined = torch.empty_like(out)  # end to end; then in the order of the tokens
        return joined.new_empty(1, attended.tokens, query.shape[1], query.shape[3])

    @staticmethod
    def backward(ctx, slope):
        query, key, value, *_ = ctx.saved_tensors
        slopes = [torch.empty_like(query), torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        out = tuple(slope.new_empty(shape) for shape in ctx.shapes)
        del slopes
        return *out, None


def _counted(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, plan: Attended | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value, plan), None


AttentionInterface.register("counted", _counted)
