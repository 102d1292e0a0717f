"""The forest: who sees whom, what is shared, and that a model's outputs and gradients are those of separate sequences."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen3Config

from trainer import forest
from trainer.attention import plan_attention
from trainer.fused import Head
from trainer.models import ForestLM


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


token = st.integers(0, 2)
prompts = st.lists(token, min_size=1, max_size=30)
families = st.lists(st.tuples(prompts, st.lists(token, max_size=6)), min_size=1, max_size=7)


@given(st.lists(token, min_size=20, max_size=20), st.lists(st.tuples(st.integers(0, 20), families), min_size=1, max_size=3), st.booleans())
def test_every_response_sees_its_own_prompt_and_nothing_else(base, parts, share):
    # prompts that begin alike, so that something is shared
    sequences = [(ids(*base[:cut], *prompt), ids(*response)) for cut, family in parts for prompt, response in family]
    packed = forest.build(sequences, share=share)
    mask, start = packed.dense_mask(), 0
    for (prompt, response), count in zip(sequences, packed.row_counts, strict=True):
        rows = packed.rows[start : start + count]
        start += count
        assert count == len(response)
        for t, row in enumerate(rows):
            visible = np.flatnonzero(mask[row])
            path = np.concatenate([prompt, response[:t]])
            assert np.array_equal(packed.token_ids[visible], path)
            assert np.array_equal(packed.positions[visible], np.arange(len(path)))
    if share:
        assert len(packed.token_ids) == forest.token_count(sequences) <= len(forest.build(sequences, share=False).token_ids)


def test_what_is_shared():
    prompt, other = ids(*range(20)), ids(*range(12), *range(100, 108))
    packed = forest.build([(prompt, ids(1, 2, 3)), (other, ids(4)), (prompt, ids(5, 6))])
    # 12 common + 8 + 8 of their own + 2 + 0 + 1 of the responses, whose last tokens predict nothing
    assert len(packed.token_ids) == 12 + 8 + 8 + 2 + 0 + 1
    assert packed.parents.tolist().count(-1) == 1


def test_a_short_common_beginning_is_not_worth_a_segment():
    packed = forest.build([(ids(1, 2, 3, 4), ids(1)), (ids(1, 2, 5, 6), ids(1))])
    assert packed.parents.tolist() == [-1, -1]


def test_a_prompt_that_begins_another_is_its_ancestor():
    packed = forest.build([(ids(1, 2), ids(9)), (ids(1, 2, 3), ids(9))])
    assert packed.parents.tolist() == [-1, 0]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        forest.build([(ids(), ids(1))])


def model(attention: str, **shape) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    config = Qwen3Config(vocab_size=50, initializer_range=0.3, **{**sizes, **shape})
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).double()


def random_sequences(seed: int, shared: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 50, 40)
    out = []
    for _ in range(9):
        own = rng.integers(0, 50, rng.integers(1, 12))
        prompt = np.concatenate([base[: rng.integers(10, 40)], own]) if shared else own
        out.append((prompt.astype(np.int32), rng.integers(0, 50, rng.integers(1, 15)).astype(np.int32)))
    return out


def separately(lm: torch.nn.Module, sequences) -> torch.Tensor:
    """Hidden states that predict each response token, one sequence at a time, with transformers' own attention."""
    parts = []
    for prompt, response in sequences:
        path = torch.from_numpy(np.concatenate([prompt, response[:-1]]).astype(np.int64))
        parts.append(lm.base_model(input_ids=path[None], use_cache=False).last_hidden_state[0, len(prompt) - 1 :])
    return torch.cat(parts)


def packed(lm: torch.nn.Module, sequences, share: bool) -> torch.Tensor:
    trees = forest.build(sequences, share=share)
    return ForestLM(lm)(trees, plan_attention(trees), lambda hidden, head: hidden)


def check_outputs_and_gradients(sequences, share: bool, key_heads: int = 2) -> None:
    ours, plain = model("forest", num_key_value_heads=key_heads), model("eager", num_key_value_heads=key_heads)
    got, wanted = packed(ours, sequences, share), separately(plain, sequences)
    assert torch.allclose(got, wanted, atol=1e-5)  # Qwen3 normalises in float32 whatever its dtype
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), plain.named_parameters(), strict=True):
        if b.grad is not None:
            assert (a.grad - b.grad).abs().max() < 1e-4 * b.grad.abs().max(), name


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_outputs_and_gradients_equal_separate_sequences(share, shared, key_heads):
    check_outputs_and_gradients(random_sequences(key_heads, shared), share, key_heads)


PROMPT, BUDGET = range(20), 300  # a budget of more than one tile of attention
EDGES = {
    "members share nothing": [(ids(first, *PROMPT), ids(1, 2, 3)) for first in (30, 31, 32, 33)],
    "single-token responses": [(ids(*PROMPT), ids(n)) for n in (1, 2)] + [(ids(*PROMPT), ids(1, 2, 3))],
    "a lone single-token response": [(ids(*PROMPT), ids(1))],
    "a response that fills the budget": [(ids(*PROMPT), np.arange(n) % 50) for n in (BUDGET, 3, 1)],
}


@pytest.mark.parametrize("sequences", EDGES.values(), ids=EDGES)
def test_groups_at_the_edge_equal_separate_sequences(sequences):
    check_outputs_and_gradients(sequences, share=True)


def test_head_carries_soft_cap_and_bias():
    head = Head(torch.eye(3), bias=torch.tensor([0.0, 1.0, 0.0]), softcap=2.0)
    assert torch.allclose(head.logits(torch.tensor([[0.0, 1.0, 100.0]])), 2 * torch.tanh(torch.tensor([[0.0, 2.0, 100.0]]) / 2))
