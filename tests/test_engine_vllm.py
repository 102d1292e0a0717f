"""The vllm engine, for real, on the CPU: the same model as transformers', seeds, streaming, weights, and what it refuses."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM

from tests.test_engine_hf import STOP, collect, plain_logp, prompts, seeds_for
from tests.tools import in_process, make_random_model, overrides
from trainer import config
from trainer.engines.base import HEARTBEAT, Sampling, Settings, corner_checksums
from trainer.engines.hf import HFEngine
from trainer.engines.sampling import filtered_logp
from trainer.engines.vllm import VLLMEngine
from trainer.errors import UserError
from trainer.files import read_jsonl

pytestmark = pytest.mark.slow
SETTINGS = Settings(max_num_seqs=64, max_model_len=128)


@pytest.fixture(scope="module")
def model(once):
    """Grouped-query attention with heads of 32, the smallest vLLM computes on a CPU; the embedding is the head."""
    return once(
        "vllm_model", lambda folder: make_random_model(folder, hidden_size=64, num_attention_heads=2, head_dim=32, num_key_value_heads=1)
    )


@pytest.fixture(scope="module")
def engine(model):
    engine = VLLMEngine(str(model), stop_ids=[STOP], settings=SETTINGS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def lm(model):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def test_greedy_is_what_transformers_says(engine, model, lm):
    asked, sampling = prompts(12, 60), Sampling(max_tokens=30, greedy=True)
    got = collect(engine, asked, seeds_for(asked, 1), sampling)
    wanted = collect(HFEngine(str(model), stop_ids=[STOP]), asked, seeds_for(asked, 1), sampling)
    assert got.keys() == wanted.keys()
    for where, response in got.items():
        assert np.array_equal(response.token_ids, wanted[where].token_ids) and response.finished == wanted[where].finished
        np.testing.assert_allclose(response.sampler_logp, wanted[where].sampler_logp, atol=1e-4)
        np.testing.assert_allclose(response.sampler_logp, plain_logp(lm, asked[where[0]], response.token_ids), atol=1e-4)


@pytest.mark.parametrize(
    "sampling", [Sampling(40), Sampling(40, temperature=0.6, top_p=0.9), Sampling(40, temperature=1.4, top_k=5, top_p=0.8)]
)
def test_log_probs_are_those_of_what_was_sampled_from(engine, lm, sampling):
    asked = prompts(4, 40)
    for (p, _), response in collect(engine, asked, seeds_for(asked, 3), sampling).items():
        path = torch.from_numpy(np.concatenate([asked[p], response.token_ids]).astype(np.int64))[None]
        with torch.no_grad():
            logp = filtered_logp(lm(path).logits[0, len(asked[p]) - 1 : -1], sampling)
        wanted = logp.gather(-1, torch.from_numpy(response.token_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(response.sampler_logp, wanted, atol=1e-4)
        assert response.finished == (response.token_ids[-1] == STOP) and (response.token_ids[:-1] != STOP).all()
        assert response.finished or len(response.token_ids) == 40


def test_a_sample_belongs_to_its_seed(engine):
    asked, sampling = prompts(), Sampling(max_tokens=20)
    first, again = (collect(engine, asked, seeds_for(asked, 4), sampling) for _ in range(2))
    assert all(np.array_equal(first[where].token_ids, again[where].token_ids) for where in first)
    assert len({tuple(response.token_ids) for response in first.values()}) > 20
    alone = collect(engine, asked[2:3], [[seeds_for(asked, 4)[2][3]]], sampling)  # whatever runs beside it
    assert np.array_equal(alone[0, 0].token_ids, first[2, 3].token_ids)


def test_samples_follow_the_distribution(engine, lm):
    prompt, count = prompts(1)[0], 2000
    drawn = collect(engine, [prompt], [list(range(count))], Sampling(max_tokens=1))
    with torch.no_grad():
        probability = lm(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1].softmax(-1).double().numpy()
    seen = np.bincount([int(response.token_ids[0]) for response in drawn.values()], minlength=len(probability))
    common = probability * count > 5
    observed = np.append(seen[common], seen[~common].sum())
    expected = np.append(probability[common], probability[~common].sum()) * count
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_responses_come_as_they_finish_and_samples_share_the_prompt(engine, monkeypatch):
    cached, step = [], engine.engine.step

    def spy():
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs if output.finished)
        return outputs

    monkeypatch.setattr(engine.engine, "step", spy)
    engine.engine.reset_prefix_cache()
    asked = [np.random.default_rng(5).integers(8, 20, 70).astype(np.int32)]
    order = [(len(response.token_ids), len(came)) for came in engine.generate(asked, [list(range(16))], Sampling(40)) for response in came]
    assert [length for length, _ in order] == sorted(length for length, _ in order) and order[0][0] < order[-1][0]
    assert max(together for _, together in order) < 16
    assert sorted(cached) == [0] + [64] * 15  # two blocks of 32 of the prompt's 70 tokens, computed once


def test_an_engine_that_works_is_heard(engine, monkeypatch):
    step = engine.engine.step
    monkeypatch.setattr(engine.engine, "step", lambda: (time.sleep(HEARTBEAT * 0.6), step())[1])
    came = list(engine.generate(prompts(1), [[0]], Sampling(6)))
    assert came.count([]) >= 1 and sum(map(len, came)) == 1


def test_who_stops_listening_leaves_nothing_running(engine):
    asked = prompts()
    next(engine.generate(asked, seeds_for(asked, 4), Sampling(40)))
    assert not engine.engine.has_unfinished_requests()
    assert len(collect(engine, asked, seeds_for(asked, 1), Sampling(5))) == len(asked)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_replaced_and_read_back(tmp_path, tied):
    shape = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "tie_word_embeddings": tied}
    old, new = (make_random_model(tmp_path / str(seed), seed=seed, **shape) for seed in (1, 2))
    weights = dict(AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32).named_parameters())
    assert ("lm_head.weight" in weights) != tied
    engine = VLLMEngine(str(old), stop_ids=[STOP], settings=replace(SETTINGS, sleeps=True))
    asked, sampling = prompts(), Sampling(20, greedy=True)
    before = engine.checksums()
    assert {"lm_head.weight", "model.norm.weight"} <= before.keys() and any("proj" in name for name in before)
    collect(engine, asked, seeds_for(asked, 1), sampling)  # fills the prefix cache
    engine.sleep()
    engine.wake("weights")
    engine.load_weights(weights)
    engine.wake("kv_cache")
    assert engine.checksums() == corner_checksums(weights, engine.watched(), torch.float32)
    assert all(before[name] != now for name, now in engine.checksums().items() if "norm" not in name)
    wanted = collect(HFEngine(str(new), stop_ids=[STOP]), asked, seeds_for(asked, 1), sampling)
    got = collect(engine, asked, seeds_for(asked, 1), sampling)
    assert all(np.array_equal(got[where].token_ids, wanted[where].token_ids) for where in wanted)
    with pytest.raises(ValueError, match="do not fit"):
        engine.load_weights({"model.layers.7.mlp.down_proj.weight": torch.zeros(64, 64)})
    engine.close()


def test_a_head_that_keeps_its_old_weights_is_seen(model):
    """The trap of tied embeddings on the CPU: without the head the engine answers with the old one, and no error is raised."""
    engine = VLLMEngine(str(model), stop_ids=[STOP], settings=SETTINGS)
    weights = {name: p + 0.1 for name, p in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters()}
    engine.tied = False
    engine.load_weights(weights)
    sent, held = corner_checksums(weights, engine.watched(), torch.float32), engine.checksums()
    assert [name for name in sent if sent[name] != held[name]] == ["lm_head.weight"]
    engine.close()


def test_what_does_not_fit_is_said_with_what_would(model, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "0.0001")
    with pytest.raises(UserError, match=r"does not hold one sequence of .*max_model_len=1000 tokens: that takes 0\.000504 GiB"):
        VLLMEngine(str(model), stop_ids=[STOP], settings=Settings(max_model_len=1000))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    with pytest.raises(UserError, match="vLLM does not start"):
        VLLMEngine(str(model), stop_ids=[STOP], settings=Settings(max_model_len=1 << 20))


def test_student_and_sampler_stay_one_model_over_ten_steps(guessing_model, chains_data, tmp_path):
    more = ("actor_rollout_ref.rollout.name=vllm", "trainer.total_training_steps=10", "trainer.val_before_train=False")
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, tmp_path, *more))) as loop:
        before = {name: tensor.clone() for name, tensor in loop.workers.actor.weights(torch.float32).items()}
        loop.run()  # every step compares checksums
        after = loop.workers.actor.weights(torch.float32)
    assert all(not torch.equal(before[name], after[name]) for name in before if "proj" in name)
    rows = [row for row in read_jsonl(tmp_path / "logs" / "metrics.jsonl") if "rollout/logp_gap_max" in row]
    assert len(rows) == 10 and max(row["rollout/logp_gap_max"] for row in rows) < 1e-4
    assert rows[0]["rollout/start_logp_gap_max"] < 1e-4
    assert all(row["rollout_corr/rollout_is_eff_sample_size"] > 0.999 for row in rows)
