"""Runs through the entry point, in this process: what a second call finds, says and leaves as it was."""

import functools
import json
import os
import signal
from pathlib import Path

import pytest

from tests.tools import make_guessing_model, overrides
from trainer import session
from trainer.files import held, read_jsonl
from trainer.main import HOW_TO_RESUME, main

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(session, "started", functools.partial(session.started, in_process=True))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def call(guessing_model, chains_data, tmp_path, capsys):
    """Call the trainer on a run in tmp_path; return its exit code and what it said."""

    def run(*more: str, model: Path = guessing_model, name: str = "sdpo") -> tuple[int, str]:
        every_step = ("trainer.total_training_steps=2", "trainer.test_freq=2", "trainer.save_freq=1")
        code = main(["--config-name", name, *overrides(model, chains_data, tmp_path, *every_step, *more)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_a_complete_run_is_shown_again_and_validated_without_loss(call, tmp_path):
    assert call()[0] == 0
    code, said = call()
    assert code == 0 and "this run is complete: 2 steps of 2" in said and "before and after" in said

    logged = read_jsonl(tmp_path / "logs" / "metrics.jsonl")
    config = (tmp_path / "logs" / "config.yaml").read_text()
    code, said = call("trainer.val_only=True")  # of the run's own weights, not of those it started from
    assert code == 0 and "validating " in said and "global_step_2/huggingface" in said
    again = read_jsonl(tmp_path / "logs" / "metrics.jsonl")
    assert again[: len(logged)] == logged and len(again) == len(logged) + 1
    key = "val-core/tiny_chains/acc/mean@4"
    assert (again[-1]["step"], again[-1][key]) == (2, logged[-1][key])
    assert (tmp_path / "logs" / "config.yaml").read_text() == config and (tmp_path / "logs" / "config.validation.yaml").is_file()
    assert (tmp_path / "validation" / "2.jsonl").read_text() == (tmp_path / "validation" / "2.jsonl.old-1").read_text()


def test_a_validation_that_was_interrupted_is_done_when_the_run_goes_on(call, tmp_path):
    assert call()[0] == 0
    file = tmp_path / "checkpoints" / "global_step_2" / "trainer.json"
    state = json.loads(file.read_text())
    manifest = file.with_name("manifest.json")
    file.write_text(json.dumps({**state, "last_validation": state["first_validation"]}))  # as saved on Ctrl-C in the last one
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "trainer.json": file.stat().st_size}))
    code, said = call()
    assert code == 0 and "before and after" in said and "complete" not in said
    assert read_jsonl(tmp_path / "logs" / "metrics.jsonl")[-1]["step"] == 2


def test_one_run_at_a_time(call, tmp_path):
    with held(tmp_path / ".checkpoints.lock", "another"):
        code, said = call()
    assert code == 2 and f"the run 'sdpo' is already going on (process {os.getpid()})" in said
    assert not (tmp_path / "logs").exists()


def test_a_run_that_starts_anew_leaves_the_earlier_one_beside(call, tmp_path):
    assert call()[0] == 0
    code, said = call("trainer.resume_mode=disable")
    assert code == 0
    for name in ("checkpoints", "rollouts", "validation", "logs"):
        assert f"{tmp_path}/{name} is now {tmp_path}/{name}.old-1" in said
    assert [len(read_jsonl(folder / "metrics.jsonl")) for folder in sorted(tmp_path.glob("logs*"))] == [4, 4]


def test_what_cannot_be_gone_on_from_is_refused(call, tmp_path):
    assert call(name="baseline_grpo")[0] == 0
    code, said = call()
    assert code == 2 and "was trained without an EMA teacher" in said
    other = make_guessing_model(tmp_path / "other", seed=1)
    code, said = call(model=other, name="baseline_grpo")
    assert code == 2 and "is a checkpoint of another model" in said


def test_a_verifier_that_fails_is_told_at_once(call, tmp_path):
    reward = tmp_path / "reward.py"
    reward.write_text("def compute_score(solution_str, **known):\n    return 0 if not solution_str else 1 / 0\n")
    code, said = call(f"custom_reward_function.path={reward}", "trainer.val_only=True")
    assert code == 0 and "the verifier failed on 64 rollouts" in said and "ZeroDivisionError" in said
    assert said.count("warning: the verifier failed") == 1


def test_ctrl_c_before_training_is_no_traceback(call, monkeypatch):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.checks.prepare", interrupt)
    code, said = call()
    assert code == 130 and said == "interrupted: nothing is lost that was saved\n"


@pytest.mark.parametrize(
    "how", ["trainer.resume_mode=disable", "trainer.resume_mode=resume_path trainer.resume_from_path='a b/global_step_3'"]
)
def test_the_command_to_go_on_with_forgets_where_this_call_started(how):
    assert HOW_TO_RESUME.sub("", f"LR=1 bash run_local_sdpo.sh x {how} data.seed=3") == "LR=1 bash run_local_sdpo.sh x data.seed=3"
