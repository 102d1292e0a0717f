"""The loop in one process, with the real actor, engine and verifiers: what it logs, dumps, repeats and survives."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.tools import in_process, make_random_model, overrides
from trainer import config
from trainer.checkpoint import SaveError
from trainer.errors import UserError
from trainer.files import read_jsonl
from trainer.loop import Interrupted
from trainer.main import main


def settings(model, data, out, *more, name="sdpo"):
    return config.load(name, overrides(model, data, out, *more))


def metrics_of(out: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/", "memory/"))}
        for row in read_jsonl(out / "logs" / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def finished(guessing_model, chains_data, tmp_path_factory) -> Path:
    """The outputs of a short run with validations and checkpoints."""
    out = tmp_path_factory.mktemp("run")
    with in_process(settings(guessing_model, chains_data, out, "trainer.test_freq=2", "trainer.save_freq=2")) as loop:
        loop.run()
    return out


def test_metric_names_dashboards_rely_on(finished):
    rows = metrics_of(finished)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 3]
    validation, step = rows[0], rows[1]
    assert {
        "val-core/tiny_chains/acc/mean@4",
        "val-core/tiny_chains/acc/pass@4",
        "val-aux/tiny_chains/acc/mean@4/ci_low",
    } <= validation.keys()
    wanted = {
        *("rollout/logp_gap_mean", "rollout/logp_gap_max", "actor/pg_loss", "actor/grad_norm", "actor/lr", "actor/entropy"),
        *(f"self_distillation/{name}" for name in ("success_group_fraction", "success_sample_fraction", "feedback_available_fraction")),
        *(f"self_distillation/{name}" for name in ("feedback_used_fraction", "reprompt_sample_fraction", "another_solution_fraction")),
        *(
            f"self_distillation/{name}"
            for name in ("failure_solution_fraction", "teacher_prompt_length/mean", "teacher_prompt_length/clip_ratio")
        ),
        *(f"self_distillation/uid_{name}" for name in ("seen_count", "ever_success_count", "never_success_count", "ever_success_fraction")),
        *(f"health/groups_{kind}" for kind in ("all_fail", "all_pass", "lone_success", "mixed")),
        *("health/distilled_fraction", "response_length/mean", "prompt_length/max", "critic/score/mean", "training/global_step"),
        *("rollout_corr/rollout_is_eff_sample_size", "rollout_corr/rollout_is_mean", "rollout/outcome/pass"),
    }
    assert not wanted - step.keys()
    phases = {"rollout", "verify", "peers", "teacher", "student", "optimizer", "sync", "step"}
    assert {f"timing_s/{name}" for name in phases} <= read_jsonl(finished / "logs" / "metrics.jsonl")[1].keys()
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert step["rollout/logp_gap_max"] < 1e-4  # student and sampler are one model


def test_run_folder(finished):
    assert (finished / "logs" / "config.yaml").is_file()
    assert json.loads((finished / "logs" / "versions.json").read_text())["torch"]
    assert sorted(path.name for path in (finished / "validation").iterdir()) == ["0.jsonl", "2.jsonl", "3.jsonl"]
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == [
        "global_step_2",
        "global_step_3",
        "latest_checkpointed_iteration.txt",
    ]


def test_rollout_dump(finished):
    rows = read_jsonl(finished / "rollouts" / "1.jsonl")
    assert len(rows) == 16
    published = {"input", "output", "gts", "score", "step", "acc", "pred", "incorrect_format", "feedback"}
    more = {"uid", "prompt_index", "rollout_index", "data_source", "outcome", "response_tokens", "finished", "peers"}
    more |= {"messages", "response_ids"}
    assert all(published | more <= row.keys() for row in rows)
    assert [row["rollout_index"] for row in rows] == [0, 1, 2, 3] * 4
    for start in range(0, 16, 4):
        group = rows[start : start + 4]
        assert len({row["uid"] for row in group}) == 1
        for row in group:
            for peer in row["peers"]:
                other = group[peer["rollout_index"]]
                assert other is not row
                assert (other["outcome"] == "pass") == (peer["role"] != "failure")


@pytest.mark.slow
def test_two_runs_with_one_seed_are_one(finished, guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path, "trainer.test_freq=2", "trainer.save_freq=2")) as loop:
        loop.run()
    assert metrics_of(tmp_path) == metrics_of(finished)
    assert (tmp_path / "rollouts" / "3.jsonl").read_text() == (finished / "rollouts" / "3.jsonl").read_text()
    with in_process(settings(guessing_model, chains_data, tmp_path / "other", "data.seed=43")) as loop:
        loop.run()
    assert metrics_of(tmp_path / "other")[1] != metrics_of(finished)[1]


@pytest.mark.slow
def test_three_steps_and_a_resume_are_three_steps_straight(finished, guessing_model, chains_data, tmp_path):
    cfg = settings(guessing_model, chains_data, tmp_path, "trainer.test_freq=2", "trainer.save_freq=2")
    with in_process(cfg) as loop:
        loop.workers.sync()
        loop.validate()
        loop.train_step()
        loop.train_step()
        loop.validate()
        loop.save()
    from trainer.checkpoint import choose_start

    with in_process(cfg) as loop:
        start = choose_start(cfg, loop.prepared.model_fingerprint, print)
        loop.restore(start.folder, start.state)
        loop.run()
    last = [folder / "checkpoints" / "global_step_3" / "huggingface" / "model.safetensors" for folder in (tmp_path, finished)]
    assert last[0].read_bytes() == last[1].read_bytes()


@pytest.mark.slow
def test_going_on_with_other_data_is_said(guessing_model, chains_data, tmp_path, capsys):
    with in_process(settings(guessing_model, chains_data, tmp_path)) as loop:
        loop.train_step()
        folder = loop.save()
        state = json.loads((folder / "trainer.json").read_text())
        loop.restore(folder, state)
        assert "training prompts" not in capsys.readouterr().out
        loop.restore(folder, {**state, "data": "of other files"})
        assert "the training prompts or their order are not those of" in capsys.readouterr().out


def test_grpo_and_several_mini_batches(guessing_model, chains_data, tmp_path):
    cfg = settings(guessing_model, chains_data, tmp_path, "actor_rollout_ref.actor.ppo_mini_batch_size=2", name="baseline_grpo")
    with in_process(cfg) as loop:
        metrics = loop.train_step()
    assert "actor/pg_clipfrac" in metrics and "critic/advantages/mean" in metrics
    assert "self_distillation/divergence" not in metrics


def test_a_step_in_which_nothing_can_be_learned(guessing_model, chains_data, tmp_path):
    """GRPO on a model that never passes: every advantage is zero, no pass is run, nothing moves."""
    cfg = settings(guessing_model, chains_data, tmp_path, "data.max_response_length=2", name="baseline_grpo")
    with in_process(cfg) as loop:
        before = loop.workers.actor.weights(loop.workers.dtype)
        metrics = loop.train_step()
        after = loop.workers.actor.weights(loop.workers.dtype)
    assert metrics["health/distilled_fraction"] == 0 and "actor/pg_loss" not in metrics
    assert metrics["rollout/outcome/truncated"] == 1.0
    assert all((before[name] == after[name]).all() for name in before)


def test_a_loss_that_is_not_finite_names_the_prompt_and_stops_the_run_after_a_while(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path, "trainer.max_nonfinite_steps=2")) as loop:
        generate, said = loop.workers.engine.generate, []

        def with_a_nan(prompts, seeds, sampling):
            for responses in generate(prompts, seeds, sampling):
                yield [
                    dataclasses.replace(r, sampler_logp=r.sampler_logp * np.nan) if (r.prompt, r.sample) == (2, 1) else r for r in responses
                ]

        loop.workers.engine.generate = with_a_nan
        loop.display.warn = said.append
        loop.train_step()
        assert loop.step == 1 and loop.nonfinite_in_a_row == 1
        uid = read_jsonl(tmp_path / "rollouts" / "1.jsonl")[8]["uid"]
        assert f"Prompts: {uid}." in said[0]
        dump = json.loads((tmp_path / "logs" / "nonfinite" / "1.json").read_text())
        assert [dump["samples"][i]["uid"] for i in dump["bad"]] == [uid] and dump["samples"][0]["response_ids"]
        with pytest.raises(UserError, match="2 steps in a row"):
            loop.train_step()


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path, "trainer.save_freq=1", "trainer.total_training_steps=2")) as loop:
        save, said = loop.workers.save, []
        loop.display.warn = said.append

        def full_at_first(folder):
            loop.workers.save = save
            raise OSError(28, "No space left on device")

        loop.workers.save = full_at_first
        loop.run()
        assert "No space left" in said[0] and "Training goes on" in said[0]
        assert (tmp_path / "checkpoints" / "global_step_2" / "manifest.json").is_file()

        loop.total_steps, loop.workers.save = 3, full_at_first
        with pytest.raises(SaveError):  # the last one must not be lost in silence
            loop.run()


def test_a_stop_is_answered_between_and_within_steps(guessing_model, chains_data, tmp_path):
    with in_process(settings(guessing_model, chains_data, tmp_path)) as loop:
        loop.stop_requested = True
        with pytest.raises(Interrupted):
            loop.run()
        assert loop.step == 0  # while the first validation was sampled

        loop.stop_requested = False
        loop.display.step = lambda *shown: setattr(loop, "stop_requested", True)
        with pytest.raises(Interrupted):
            loop.run()
        assert loop.step == 1


@pytest.mark.slow
def test_bad_input_ends_before_a_model_loads(guessing_model, chains_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.session.started", lambda *a, **k: pytest.fail("the run started"))
    base = overrides(guessing_model, chains_data, tmp_path)
    raising, no_python = tmp_path / "raising.py", tmp_path / "no_python.py"
    raising.write_text("def compute_score(**known):\n    return 1 / len(known['solution_str'])\n")
    no_python.write_text("def compute_score(:\n")
    cases = {
        "data.train_batch_size=128|actor_rollout_ref.actor.ppo_mini_batch_size=128": "=128 is more than the 64 training prompts",
        "data.train_files=[/nowhere]": "/nowhere: no such file",
        "actor_rollout_ref.model.path=Qwen/Qwen3-14B-Instruct": "Did you mean Qwen/Qwen3-14B?",
        f"actor_rollout_ref.model.path={tmp_path}": "holds no config.json",
        "custom_reward_function.path=/nowhere.py": "custom_reward_function.path=/nowhere.py: no such file",
        "data.max_prompt_length=4": "all 64 prompts are longer than data.max_prompt_length=4",
        "actor_rollout_ref.rollout.max_model_len=58": "less than data.max_response_length=40 tokens for the response; the longest, uid '",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=2": "=2 is for GPUs; on a CPU it must be 1",
        "trainer.device=cuda": "shows no GPU",
        "actor_rollout_ref.actor.self_distillation.max_reprompt_len=40": "takes 48 tokens before any peer is shown",
        "data.train_files=[]": "data.train_files is empty",
        f"trainer.log_dir={chains_data}/train.parquet": "train.parquet is a file, not a folder",
        "trainer.nnodes=2": "needs a Ray cluster",
        "trainer.logger=[wandb]": "there is no account here",
        "trainer.resume_mode=resume_path|trainer.resume_from_path=/nowhere": "not a whole checkpoint (there is no such folder)",
        "trainer.val_only=True|trainer.resume_mode=resume_path|trainer.resume_from_path=/nowhere": "/nowhere: no model folder",
        f"custom_reward_function.path={raising}": "raised ZeroDivisionError",
        f"custom_reward_function.path={no_python}": "cannot be imported (SyntaxError",
        f"custom_reward_function.path={chains_data}/train.parquet": "not a Python file",
    }
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_MODE", "online")
    for changes, message in cases.items():
        assert main(["--config-name", "sdpo", *base, *changes.split("|")]) == 2
        assert message in capsys.readouterr().err, changes


def test_a_teacher_of_another_vocabulary_is_refused(guessing_model, chains_data, tmp_path, capsys):
    other = make_random_model(tmp_path / "other", words=("extra",))
    frozen = "actor_rollout_ref.actor.self_distillation.teacher_update_rate=0"
    code = main(
        ["--config-name", "sdpo", *overrides(guessing_model, chains_data, tmp_path, f"actor_rollout_ref.ref.model.path={other}", frozen)]
    )
    assert code == 2 and "student and teacher have different vocabularies" in capsys.readouterr().err


def test_a_teacher_that_opens_its_turn_differently_is_refused(guessing_model, chains_data, tmp_path, capsys):
    other = make_random_model(tmp_path / "other")
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("assistant\n{% endif", "assistant\nuser\n{% endif"))
    frozen = "actor_rollout_ref.actor.self_distillation.teacher_update_rate=0"
    code = main(
        ["--config-name", "sdpo", *overrides(guessing_model, chains_data, tmp_path, f"actor_rollout_ref.ref.model.path={other}", frozen)]
    )
    assert code == 2 and "open an assistant turn differently" in capsys.readouterr().err


def test_dry_run_shows_sizes_and_two_teacher_prompts(guessing_model, chains_data, tmp_path, capsys):
    assert main(["--config-name", "sdpo", *overrides(guessing_model, chains_data, tmp_path, "trainer.dry_run=True")]) == 0
    out = capsys.readouterr().out
    assert "3 of 4 prompts x 4 rollouts = 16 rollouts" in out and "up to 2 success(es) and 1 failure(s)" in out
    assert out.count("--- teacher prompt of a failed rollout in") == 2 and "Another successful solution:" in out
    assert not (tmp_path / "logs").exists()
