"""One-step overlap: which weights sample which step, what a checkpoint keeps of it, and that both ways learn."""

import json

import pytest
import torch

from tests.tools import in_process, overrides, write_chains
from trainer import config
from trainer.errors import UserError
from trainer.files import read_jsonl
from trainer.loop import Interrupted

OVERLAP = ("trainer.rollout_overlap=1", "actor_rollout_ref.rollout.n_gpus=1", "trainer.val_before_train=False")


def settings(model, data, out, *more, name="baseline_grpo", **sizes):
    return config.load(name, overrides(model, data, out, *OVERLAP, *more, **sizes))


def rows(out) -> list[dict]:
    return [row for row in read_jsonl(out / "logs" / "metrics.jsonl") if "training/global_step" in row]


def test_a_step_is_sampled_with_the_weights_before_the_last_update(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path, "trainer.total_training_steps=4")) as loop:
        events, sync, generate = [], loop.workers.sync, loop.workers.generate

        def watched_generate(prompts, seeds, sampling):
            events.append("sample")
            yield from generate(prompts, seeds, sampling)
            events.append("sampled")

        loop.workers.generate = watched_generate
        loop.workers.sync = lambda: (events.append("sync"), sync())[1]
        loop.run()
    # parity at the start; then a step ahead, and never a sync while something is sampled
    assert events[:4] == ["sync", "sample", "sampled", "sync"]
    assert events[4:] == ["sample", "sampled", *["sample", "sampled", "sync"] * 3, "sync"]
    gaps = [row["rollout/logp_gap_max"] for row in rows(tmp_path)]
    assert gaps[0] < 1e-5 and all(gap > 1e-4 for gap in gaps[1:])
    assert all("timing_s/rollout_wait" in row for row in rows(tmp_path))


def test_a_checkpoint_keeps_what_was_sampled_ahead(guessing_model, chains_data, tmp_path):
    def run(out, resume_from=None) -> dict[str, torch.Tensor]:
        with in_process(settings(guessing_model, chains_data, out, "trainer.total_training_steps=4", "trainer.save_freq=2")) as loop:
            if resume_from is not None:
                loop.restore(resume_from, json.loads((resume_from / "trainer.json").read_text()))
            loop.run()
            return loop.workers.actor.weights(torch.float32)

    straight, folder = run(tmp_path / "straight"), tmp_path / "straight" / "checkpoints" / "global_step_2"
    assert (folder / "ahead.json").is_file() and not (folder.with_name("global_step_4") / "ahead.json").exists()
    resumed = run(tmp_path / "resumed", folder)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_an_interruption_while_sampling_ahead_keeps_the_step(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path, "trainer.total_training_steps=9")) as loop:
        update = loop.workers.update

        def update_and_stop(*arguments):
            loop.stop_requested = True
            return update(*arguments)

        loop.workers.update = update_and_stop
        with pytest.raises(Interrupted):
            loop.run()
        assert loop.step == 1 and rows(tmp_path)[-1]["training/global_step"] == 1


def test_what_breaks_while_sampling_ahead_breaks_the_run(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path)) as loop:
        generate, calls = loop.workers.generate, []

        def broken(*arguments):
            calls.append(1)
            if len(calls) > 2:  # parity, the first step, the second one ahead
                raise RuntimeError("the engine broke")
            yield from generate(*arguments)

        loop.workers.generate = broken
        with pytest.raises(RuntimeError, match="the engine broke"):
            loop.run()


def test_another_model_in_the_engine_stops_the_run_at_its_start(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path)) as loop:
        weights = loop.workers.engine.load_weights
        loop.workers.engine.load_weights = lambda new: weights({name: p * 1.05 for name, p in new.items()})
        loop.workers.watched = []  # a mismatch no checksum sees
        loop.workers.engine.checksums = dict
        with pytest.raises(UserError, match=r"engine and student are not the same model: their log-probs of .* differ by"):
            loop.run()


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_both_ways_learn(guessing_model, tmp_path, overlap, engine):
    data = write_chains(tmp_path / "data", train=64, test=16, answers="1")  # of three answers the model guesses, one is right
    more = (f"trainer.rollout_overlap={overlap}", f"actor_rollout_ref.rollout.name={engine}", "trainer.total_training_steps=15")
    with in_process(settings(guessing_model, data, tmp_path, *more, n=8)) as loop:
        loop.run()
    score = [row["critic/score/mean"] for row in rows(tmp_path)]
    assert sum(score[:3]) / 3 < 0.6 and sum(score[-3:]) / 3 > 0.85
