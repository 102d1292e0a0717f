"""The hf engine: what it samples and says of it is what the model gives, whatever runs beside it."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from tests.tools import make_random_model
from trainer import engines
from trainer.engines.base import Sampling, Settings, corner_checksums, spread
from trainer.engines.hf import HFEngine, _arrange
from trainer.engines.sampling import filtered_logp, sample, uniforms
from trainer.errors import UserError

STOP = 7


@pytest.fixture(scope="module")
def engine(random_model):
    return HFEngine(str(random_model), stop_ids=[STOP], settings=Settings(max_num_seqs=64))


@pytest.fixture(scope="module")
def lm(random_model):
    return AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval()


def prompts(count: int = 6, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(8, 20, rng.integers(3, longest)).astype(np.int32) for _ in range(count)]


def collect(engine, asked, seeds, sampling):
    out = {}
    for responses in engine.generate(asked, seeds, sampling):
        for response in responses:
            assert (response.prompt, response.sample) not in out
            out[response.prompt, response.sample] = response
    return out


def plain_logp(lm, prompt, response) -> np.ndarray:
    path = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    with torch.no_grad():
        logp = lm(path).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logp.gather(-1, torch.from_numpy(response).long()[:, None])[:, 0].numpy()


def seeds_for(asked, n: int):
    return [[1000 * p + s for s in range(n)] for p in range(len(asked))]


@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}])
def test_log_probs_are_those_of_the_model(tmp_path, shape):
    model = make_random_model(tmp_path / "model", **shape)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    asked = prompts()
    out = collect(HFEngine(str(model), stop_ids=[STOP]), asked, seeds_for(asked, 3), Sampling(max_tokens=70))
    assert len(out) == 18
    lengths = {len(response.token_ids) for response in out.values()}
    assert len(lengths) > 5  # rows finished at many different times and left
    for (p, _), response in out.items():
        assert np.allclose(response.sampler_logp, plain_logp(lm, asked[p], response.token_ids), atol=2e-5)
        assert response.finished == (response.token_ids[-1] == STOP)
        assert STOP not in response.token_ids[:-1]
        assert response.finished or len(response.token_ids) == 70


def test_top_k_is_k_words_also_among_equals():
    logp = filtered_logp(torch.tensor([[1.0, 1.0, 1.0, 0.0]]), Sampling(max_tokens=1, top_k=2))
    assert torch.isfinite(logp).sum() == 2 and logp.exp().sum().item() == pytest.approx(1)


def test_greedy_is_transformers_greedy(engine, lm):
    asked = prompts()
    out = collect(engine, asked, seeds_for(asked, 1), Sampling(max_tokens=25, greedy=True))
    for p, prompt in enumerate(asked):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        wanted = lm.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=25, eos_token_id=STOP, pad_token_id=0
        )
        assert out[p, 0].token_ids.tolist() == wanted[0, len(prompt) :].tolist()


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(engine):
    asked = prompts()
    everything = collect(engine, asked, seeds_for(asked, 4), Sampling(max_tokens=30))
    again = collect(engine, asked, seeds_for(asked, 4), Sampling(max_tokens=30))
    alone = collect(engine, asked[2:3], [[2003]], Sampling(max_tokens=30))
    small = HFEngine(engine.lm.config._name_or_path, stop_ids=[STOP], settings=Settings(max_num_seqs=3))
    waves = collect(small, asked, seeds_for(asked, 4), Sampling(max_tokens=30))
    for where, response in everything.items():
        assert np.array_equal(response.token_ids, again[where].token_ids)
        assert np.array_equal(response.sampler_logp, again[where].sampler_logp)  # the same call: bit for bit
        assert np.array_equal(response.token_ids, waves[where].token_ids)
    assert np.array_equal(alone[0, 0].token_ids, everything[2, 3].token_ids)
    assert len({tuple(everything[0, s].token_ids) for s in range(4)}) == 4


def test_responses_come_as_they_finish(engine):
    asked = prompts()
    batches = list(engine.generate(asked, seeds_for(asked, 8), Sampling(max_tokens=60)))
    sizes = [len(responses) for responses in batches]
    assert len(sizes) > 5 and sum(sizes) == 48
    ends = [len(responses[0].token_ids) for responses in batches]
    assert ends == sorted(ends)


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(40_000, 4)
    uniform = torch.from_numpy(np.random.default_rng(0).random(40_000, np.float32))
    for sampling in (Sampling(1), Sampling(1, temperature=0.5), Sampling(1, top_k=2), Sampling(1, top_p=0.8)):
        tokens, logp = sample(logits, uniform, sampling)
        expected = filtered_logp(logits[:1], sampling)[0].exp().double().numpy()
        counts = np.bincount(tokens.numpy(), minlength=4)
        possible = expected > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], expected[possible] / expected.sum() * 40_000).pvalue > 1e-4
        assert torch.allclose(logp, filtered_logp(logits, sampling).gather(-1, tokens[:, None])[:, 0])


def test_filters_keep_what_they_say():
    logp = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert filtered_logp(logp, Sampling(1, top_p=0.8)).exp()[0].tolist() == pytest.approx([0.625, 0.375, 0, 0])
    assert filtered_logp(logp, Sampling(1, top_p=0.81)).exp()[0, 2] > 0
    assert filtered_logp(logp, Sampling(1, top_p=1e-6)).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert filtered_logp(logp, Sampling(1, top_k=3)).exp()[0, 3] == 0
    assert filtered_logp(logp, Sampling(1, temperature=2.0)).exp()[0].tolist() == pytest.approx(
        (np.sqrt([0.5, 0.3, 0.15, 0.05]) / np.sqrt([0.5, 0.3, 0.15, 0.05]).sum()).tolist()
    )


def test_a_draw_past_the_last_word_is_still_a_word():
    tokens, logp = sample(torch.tensor([[0.0, -80.0]]), torch.tensor([1.0]), Sampling(1))
    assert tokens.item() == 0 and torch.isfinite(logp).all()


def test_uniform_streams_belong_to_their_seeds():
    assert np.array_equal(uniforms([5, 6], 9)[1], uniforms([6], 9)[0])
    assert uniforms([5], 9).max() < 1


def test_weights_are_replaced_and_summed(engine, random_model, tmp_path):
    other = make_random_model(tmp_path / "other", seed=3)
    weights = dict(AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).named_parameters())
    fresh = HFEngine(str(random_model), stop_ids=[STOP])
    fresh.load_weights(weights)
    assert fresh.checksums() == corner_checksums(weights, fresh.watched(), torch.float32)
    asked = prompts()
    wanted = collect(HFEngine(str(other), stop_ids=[STOP]), asked, seeds_for(asked, 2), Sampling(20))
    got = collect(fresh, asked, seeds_for(asked, 2), Sampling(20))
    assert all(np.array_equal(got[where].token_ids, wanted[where].token_ids) for where in wanted)
    with pytest.raises(ValueError, match="do not fit"):
        fresh.load_weights({"model.norm.weight": weights["model.norm.weight"]})


def test_checksums_see_a_single_changed_value():
    weights = {"norm.weight": torch.zeros(9), "up.weight": torch.zeros(3, 9), "embed_tokens.weight": torch.zeros(5, 9)}
    names = [*weights, "lm_head.weight"]
    before = corner_checksums(weights, names, torch.float32)
    assert before["lm_head.weight"] == before["embed_tokens.weight"]  # tied
    for name, where in (("norm.weight", 8), ("up.weight", (2, 3))):
        weights[name][where] = 1e-7
        after = corner_checksums(weights, names, torch.float32)
        assert [n for n in names if after[n] != before[n]] == [name]
        before = after


def test_watched_names_are_spread():
    names = [f"w{i}" for i in range(9)]
    assert spread(names, 5) == ["w0", "w2", "w4", "w6", "w8"] and spread(names[:2]) == names[:2] and spread([]) == []


def test_slots_hold_every_response_once_with_its_own_prompt():
    rng = np.random.default_rng(0)
    for _ in range(50):
        prompt_of = rng.integers(0, 5, 24)
        left = np.sort(rng.choice(24, rng.integers(1, 25), replace=False))
        rows, slots = _arrange(left, prompt_of, nobody=24)
        assert sorted(rows[rows < 24]) == left.tolist() and len(rows) <= 1.25 * len(left)
        width = len(rows) // len(slots)
        assert all(prompt_of[r] == slots[place // width] for place, r in enumerate(rows) if r < 24)


def test_engines_that_are_not_there_say_so():
    with pytest.raises(UserError, match="'sglang': this engine is not there yet; vllm is"):
        engines.check("sglang")
    with pytest.raises(UserError, match="known are hf, vllm"):
        engines.check("fast")
