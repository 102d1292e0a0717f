"""Forest attention, every kind of it against the dense mask; on a machine with a GPU also the kernels and their gradients."""

import inspect
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_forest import ids, model, packed, random_sequences, separately
from trainer import forest
from trainer.attention import KINDS, choose, flex, forest_attention, plan_attention, segmentwise, varlen
from trainer.models import ForestLM

has_gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
gpu = pytest.mark.skipif(not has_gpu, reason="needs a CUDA GPU with bfloat16")
sizes = st.sampled_from([1, 3, 20, 90, 128, 129, 300])  # of what is shared; forests come to one token or two thousand
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}  # relative to the largest value


def random_forest(seed: int, size: int, share: bool = True) -> forest.Forest:
    """One or two families of prompts with a common beginning of about `size` tokens; some responses have one token."""
    rng = np.random.default_rng(seed)
    sequences = []
    for _ in range(rng.integers(1, 3)):
        base = rng.integers(0, 50, size)
        for _ in range(rng.integers(1, 6)):
            prompt = np.concatenate([base[: rng.integers(size // 2, size + 1)], rng.integers(0, 50, rng.integers(1, size + 2))])
            sequences.append((prompt, rng.integers(0, 50, rng.choice([1, rng.integers(1, size + 2)]))))
    return forest.build(sequences, share=share)


def states(trees: forest.Forest, seed: int, *, dim: int = 16, heads: int = 4, dtype=torch.float64, device="cpu") -> list[torch.Tensor]:
    """Random queries with `heads` heads, keys and values with two."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, n, len(trees.token_ids), dim) for n in (heads, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]


def by_dense_mask(trees: forest.Forest, query, key, value, scaling: float | None = None) -> torch.Tensor:
    mask = torch.from_numpy(trees.dense_mask()).to(query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return (got - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


# segmentwise


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 20, 60]), st.booleans(), st.sampled_from([5, segmentwise.TILE]))
@settings(max_examples=25)
def test_segmentwise_and_its_gradients_equal_the_dense_mask(seed, size, share, tile):
    trees = random_forest(seed, size, share)
    ours, plain = ([x.requires_grad_() for x in states(trees, seed)] for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentwise, "TILE", tile)
        got, _ = forest_attention(None, *ours, None, scaling=0.3, plan=plan_attention(trees))
    wanted = by_dense_mask(trees, *plain, scaling=0.3)
    assert close(got, wanted, torch.float64)
    slope = torch.randn(got.shape, generator=torch.Generator().manual_seed(seed), dtype=got.dtype)
    got.backward(slope)
    wanted.backward(slope)
    assert all(close(a.grad, b.grad, torch.float64) for a, b in zip(ours, plain, strict=True))


def test_few_calls_for_many_small_segments():
    rng = np.random.default_rng(0)
    small = [(rng.integers(0, 50, 19), rng.integers(0, 50, 34)) for _ in range(4) for _ in range(8)]
    assert len(plan_attention(forest.build(small)).of("segmentwise").blocks) <= 3


@pytest.mark.parametrize("share", [True, False])
def test_little_is_computed_that_nobody_sees_in_large_segments(share, monkeypatch):
    pairs, attention = [], F.scaled_dot_product_attention

    def counted(query, key, *args, is_causal=False, **kwargs):
        rows, queries, keys = query.shape[0], query.shape[2], key.shape[2]
        pairs.append(rows * (queries * (queries + 1) // 2 if is_causal else queries * keys))
        return attention(query, key, *args, is_causal=is_causal, **kwargs)

    rng = np.random.default_rng(0)
    prompt = rng.integers(0, 50, 600)
    trees = forest.build([(prompt, rng.integers(0, 50, n)) for n in (1900, 1500, 1100, 700)], share=share)
    monkeypatch.setattr(segmentwise.F, "scaled_dot_product_attention", counted)
    forest_attention(None, *states(trees, 0, heads=2, dtype=torch.float32), None, plan=plan_attention(trees))
    assert trees.dense_mask().sum() < sum(pairs) < 1.2 * trees.dense_mask().sum()


@pytest.mark.parametrize("option", [{"sliding_window": 4}, {"softcap": 30.0}])
def test_attention_it_does_not_cover_is_refused(option):
    trees = forest.build([(ids(1, 2), ids(3))])
    zeros = torch.zeros(1, 2, 2, 8)
    with pytest.raises(ValueError, match="does not cover"):
        forest_attention(None, zeros, zeros, zeros, None, plan=plan_attention(trees), **option)
    with pytest.raises(ValueError, match="plan_attention"):
        forest_attention(None, zeros, zeros, zeros, None)
    with pytest.raises(ValueError, match=r"dense.*segmentwise, flex, varlen"):
        plan_attention(trees, kind="dense")


# flex


def listed(counts: torch.Tensor, indices: torch.Tensor) -> set[tuple[int, int]]:
    """The pairs (row, column) of blocks in one of a block mask's lists."""
    return {(row, int(column)) for row, n in enumerate(counts[0, 0]) for column in indices[0, 0, row, :n]}


@given(st.integers(0, 10_000), sizes, st.booleans())
@settings(max_examples=40)
def test_the_block_mask_is_the_dense_mask(seed, size, share):
    trees = random_forest(seed, size, share)
    planned, tokens = flex.plan(trees, torch.device("cpu")), len(trees.token_ids)
    mask, at = planned.mask, torch.arange(planned.length)
    assert planned.length % flex.BLOCK == 0 and tokens <= planned.length and mask.shape[-2:] == (planned.length, planned.length)
    allowed = mask.mask_mod(0, 0, at[:, None], at[None, :]).numpy()
    assert np.array_equal(allowed[:tokens, :tokens], trees.dense_mask())
    assert np.array_equal(allowed[tokens:], np.eye(planned.length, dtype=bool)[tokens:])  # padding sees itself

    inside = allowed.reshape(-1, flex.BLOCK, planned.length // flex.BLOCK, flex.BLOCK)
    some, every = inside.any((1, 3)), inside.all((1, 3))
    partial, full = listed(mask.kv_num_blocks, mask.kv_indices), listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    assert partial == set(zip(*map(np.ndarray.tolist, np.nonzero(some & ~every)), strict=True))
    assert full == set(zip(*map(np.ndarray.tolist, np.nonzero(every)), strict=True))
    # the backward pass goes through the same blocks by columns
    assert {(q, k) for k, q in listed(mask.q_num_blocks, mask.q_indices)} == partial
    assert {(q, k) for k, q in listed(mask.full_q_num_blocks, mask.full_q_indices)} == full


@pytest.fixture
def compiled_afresh():
    """No other test's kernels; whatever would be compiled a second time raises."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    flex.compiled.cache_clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()
    flex.compiled.cache_clear()


def test_flex_equals_the_dense_mask_traced_once_for_all_forests(compiled_afresh):
    # the first forest has as many blocks as there are heads of keys, which must not tie the one to the other
    for seed, size in enumerate([3, 90, 200, 20, 128]):
        trees = random_forest(seed, size, share=seed % 2 == 0)
        given = states(trees, seed, dtype=torch.float32)
        got, _ = forest_attention(None, *given, None, scaling=0.3, plan=plan_attention(trees, kind="flex"))
        assert close(got, by_dense_mask(trees, *given, scaling=0.3), torch.float32)
        assert got.is_contiguous()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


# varlen


@given(st.integers(0, 10_000), sizes)
@settings(max_examples=25)
def test_chains_are_the_dense_mask(seed, size):
    trees = random_forest(seed, size, share=False)
    chains = varlen.plan(trees, torch.device("cpu"))
    bounds = chains.bounds.tolist()
    mask = np.zeros_like(trees.dense_mask())
    for start, end in pairwise(bounds):
        mask[start:end, start:end] = np.tri(end - start, dtype=bool)
    assert chains.bounds.dtype == torch.int32 and bounds[-1] == len(trees.token_ids) and chains.longest == np.diff(bounds).max()
    assert np.array_equal(mask, trees.dense_mask())


def test_what_is_shared_is_no_chain():
    prompt = ids(*range(12))
    assert varlen.is_chains(forest.build([(prompt, ids(1, 2, 3))]))
    assert varlen.is_chains(forest.build([(prompt, ids(1)), (ids(*range(14)), ids(2, 3))]))  # one prompt begins the other: a chain
    assert not varlen.is_chains(forest.build([(prompt, ids(1, 2)), (prompt, ids(2, 3))]))
    assert varlen.is_chains(forest.build([(prompt, ids(1, 2)), (prompt, ids(2, 3))], share=False))
    with pytest.raises(ValueError, match="nothing is shared"):
        varlen.plan(forest.build([(prompt, ids(1, 2)), (prompt, ids(2, 3))]), torch.device("cpu"))


def test_the_call_of_varlen_means_causal_attention_in_each_chain(monkeypatch):
    signature = inspect.signature(varlen.varlen_attn)

    def sequence_by_sequence(*args, **kwargs):
        """What the kernel's documentation says of these arguments, for there is no such kernel on a CPU."""
        call = signature.bind(*args, **kwargs).arguments
        assert call["window_size"] == (-1, 0) and call["enable_gqa"] and call["max_q"] == call["max_k"]
        parts, bounds = [], call["cu_seq_q"].tolist()
        assert torch.equal(call["cu_seq_q"], call["cu_seq_k"])
        for start, end in pairwise(bounds):
            assert end - start <= call["max_q"]
            q, k, v = (call[name][start:end].transpose(0, 1)[None] for name in ("query", "key", "value"))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=call["scale"], enable_gqa=True)
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", sequence_by_sequence)
    trees = random_forest(5, 20, share=False)
    given = states(trees, 5)
    got, _ = forest_attention(None, *given, None, scaling=0.3, plan=plan_attention(trees, kind="varlen"))
    assert close(got, by_dense_mask(trees, *given, scaling=0.3), torch.float64)


# the choice


def test_which_kind_runs_where(monkeypatch):
    from torch._subclasses.fake_tensor import FakeTensorMode

    prompt = ids(*range(12))
    shared, apart = (forest.build([(prompt, ids(1, 2)), (prompt, ids(2, 3))], share=share) for share in (True, False))

    def kind(trees: forest.Forest, device: str, dtype=torch.bfloat16, dim: int = 64, dropout: float = 0.0) -> str:
        with FakeTensorMode():
            query = torch.empty(1, 4, len(trees.token_ids), dim, dtype=dtype, device=device)
        return choose(plan_attention(trees, device), query, dropout)

    monkeypatch.setattr(varlen, "_has_kernels", lambda device: True)
    assert kind(shared, "cpu") == kind(apart, "cpu") == "segmentwise"
    assert kind(shared, "cuda") == "flex"
    assert kind(apart, "cuda") == "varlen"
    assert kind(apart, "cuda", torch.float32) == kind(apart, "cuda", dim=256) == "flex"
    assert kind(shared, "cuda", dim=8) == kind(shared, "cuda", dropout=0.1) == "segmentwise"
    monkeypatch.setattr(varlen, "_has_kernels", lambda device: False)
    assert kind(apart, "cuda") == "flex"


def test_a_compiled_model_is_not_compiled_again_for_another_forest():
    torch._dynamo.reset()
    lm = model("forest", num_hidden_layers=1)
    wanted = [packed(lm, random_sequences(seed, True), share=True) for seed in range(3)]
    lm.model.layers[0].compile(dynamic=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            assert torch.allclose(packed(lm, random_sequences(seed, True), share=True), wanted[seed])
    torch._dynamo.reset()


# on a GPU: `python -m pytest tests/test_attention.py`


def run_with_gradients(kind: str | None, trees: forest.Forest, dtype, seed: int = 0, **shape) -> list[torch.Tensor]:
    """Return output and gradients of queries, keys and values, by `kind` or, with None, by the dense mask in float64."""
    given = [x.to(torch.float64 if kind is None else dtype) for x in states(trees, seed, dtype=dtype, device="cuda", **shape)]
    given = [x.requires_grad_() for x in given]
    if kind is None:
        out = by_dense_mask(trees, *given)
    else:
        out, _ = forest_attention(None, *given, None, plan=plan_attention(trees, "cuda", kind=kind))
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    out.backward(slope.to(out))
    return [out, *(x.grad for x in given)]


@gpu
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize(("kind", "dtype"), [("flex", torch.float32), ("flex", torch.bfloat16), ("varlen", torch.bfloat16)])
def test_kernels_and_their_gradients_equal_the_dense_mask(kind, dtype, dim):
    for seed, size in enumerate((1, 20, 129, 400)):
        trees = random_forest(seed, size, share=kind != "varlen")
        got, wanted = (run_with_gradients(k, trees, dtype, seed, dim=dim, heads=8) for k in (kind, None))
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        for a, b in zip(got, wanted, strict=True):
            assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@gpu
def test_flex_is_compiled_once_over_ten_micro_batches(compiled_afresh):
    for seed in range(10):
        run_with_gradients("flex", random_forest(seed, [3, 90, 300, 900][seed % 4]), torch.bfloat16, seed, dim=64)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@gpu
@pytest.mark.parametrize(("dim", "share", "kind"), [(32, True, "flex"), (32, False, "varlen"), (8, True, "segmentwise")])
def test_a_model_on_the_gpu_equals_separate_sequences_on_the_cpu(dim, share, kind):
    sequences = random_sequences(0, True)
    trees = forest.build(sequences, share=share)
    plan = plan_attention(trees, "cuda")
    ours = ForestLM(model("forest", head_dim=dim).bfloat16().cuda())
    got = ours(trees, plan, lambda hidden, head: hidden)
    assert list(plan._planned) == [kind]
    plain = model("eager", head_dim=dim)
    wanted = separately(plain, sequences)
    slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    got.backward(slope.to(got))
    wanted.backward(slope)
    assert (got.cpu() - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    for a, b in zip(ours.lm.model.layers.parameters(), plain.model.layers.parameters(), strict=True):
        assert F.cosine_similarity(a.grad.double().cpu().flatten(), b.grad.flatten(), dim=0) > 0.98


@gpu
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_long_forest_runs_on_the_gpu(kind):
    rng = np.random.default_rng(0)
    context = rng.integers(0, 50, 10_000)
    trees = forest.build([(context, rng.integers(0, 50, 4096)) for _ in range(2)], share=kind != "varlen")
    out = run_with_gradients(kind, trees, torch.bfloat16, dim=128, heads=8)
    assert all(x.isfinite().all() for x in out)
