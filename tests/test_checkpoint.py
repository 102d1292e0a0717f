"""Checkpoints: whole or not there, the newest whole one found, another model's refused."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import ROOT
from trainer import config
from trainer.checkpoint import Checkpoints, SaveError, choose_start, model_folder, step_in
from trainer.errors import UserError
from trainer.files import held, read_jsonl, set_aside, write_jsonl, write_text

STATE = {"teacher": True, "step": 1, "model": "m", "data": "d", "config": config.flat(config.load("sdpo"))}


def writer(content: bytes = b"weights"):
    def write(folder: Path) -> None:
        (folder / "training").mkdir()
        (folder / "training" / "shard").write_bytes(content)
        (folder / "huggingface").mkdir()
        (folder / "huggingface" / "config.json").write_text("{}")

    return write


def save(folder: Path, *steps: int, keep: int = 9) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, writer(), {**STATE, "step": step})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_saved_kept_and_pointed_to(tmp_path):
    checkpoints = save(tmp_path, 5, 10, 15, keep=2)
    assert names(tmp_path) == ["global_step_10", "global_step_15", "latest_checkpointed_iteration.txt"]
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "15"
    assert checkpoints.latest_whole() == (tmp_path / "global_step_15", [])


def test_what_is_saved_is_never_pruned_whatever_lies_beside_it(tmp_path):
    save(tmp_path, 20, 40)
    for step in (20, 40):  # an earlier run's, broken
        (tmp_path / f"global_step_{step}" / "manifest.json").unlink()
    checkpoints = save(tmp_path, 5, 10, 15, keep=2)
    assert checkpoints.latest_whole()[0] == tmp_path / "global_step_15"
    assert {"global_step_10", "global_step_15"} <= set(names(tmp_path)) and "global_step_5" not in names(tmp_path)


def test_going_on_from_an_earlier_step_puts_the_later_ones_aside(tmp_path):
    save(tmp_path, 5, 8)
    said = []
    cfg = _config(tmp_path, resume_mode="resume_path", resume_from_path=str(tmp_path / "global_step_5"))
    assert choose_start(cfg, "m", said.append).step == 5
    assert any("of a later step is now" in line for line in said) and (tmp_path / "global_step_8.old-1").is_dir()
    save(tmp_path, 6)
    assert choose_start(_config(tmp_path), "m", said.append).step == 6


def test_when_no_checkpoint_is_whole_the_run_starts_anew_beside_what_is_left(tmp_path):
    run = tmp_path / "run"
    save(run, 5)
    (run / "global_step_5" / "manifest.json").unlink()
    (run / "l").mkdir()
    said = []
    assert choose_start(_config(run), "m", said.append).folder is None
    assert "starting anew" in said[0] and (tmp_path / "run.old-1" / "global_step_5").is_dir() and not run.exists()


def test_a_checkpoint_without_the_teacher_a_run_needs_is_refused(tmp_path):
    Checkpoints(tmp_path, 2).save(5, writer(), {**STATE, "teacher": False, "step": 5})
    with pytest.raises(UserError, match=r"trained without an EMA teacher.*teacher_update_rate=0"):
        choose_start(_config(tmp_path), "m", print)
    frozen = _config(tmp_path)
    frozen.actor_rollout_ref.actor.self_distillation.teacher_update_rate = 0.0
    assert choose_start(frozen, "m", lambda text: None).step == 5


@pytest.mark.parametrize("fault", ["missing", "short", "manifest", "cut manifest"])
def test_a_half_written_checkpoint_is_passed_over_and_said(tmp_path, fault):
    checkpoints = save(tmp_path, 5, 10)
    broken = tmp_path / "global_step_10"
    if fault == "missing":
        (broken / "training" / "shard").unlink()
    elif fault == "short":
        (broken / "training" / "shard").write_bytes(b"weig")
    elif fault == "manifest":
        (broken / "manifest.json").unlink()
    else:
        (broken / "manifest.json").write_text('{"train')
    said = []
    start = choose_start(_config(tmp_path), "m", said.append)
    assert start.folder == tmp_path / "global_step_5" and start.step == 5
    assert "global_step_10 is not whole" in said[0] and "going back to" in said[0]
    assert checkpoints.latest_whole()[0] == tmp_path / "global_step_5"
    with pytest.raises(UserError, match="not a whole checkpoint"):
        choose_start(_config(tmp_path, resume_mode="resume_path", resume_from_path=str(broken)), "m", said.append)


def _config(folder: Path, **trainer):
    cfg = config.load("sdpo")
    changes = {
        "default_local_dir": str(folder),
        "rollout_data_dir": str(folder / "r"),
        "validation_data_dir": str(folder / "v"),
        "log_dir": str(folder / "l"),
    }
    return dataclasses.replace(cfg, trainer=dataclasses.replace(cfg.trainer, **{**changes, **trainer}))


def test_start_says_what_changed_and_refuses_another_model(tmp_path):
    save(tmp_path, 5)
    said = []
    cfg = _config(tmp_path)
    cfg.data.seed = 9
    assert choose_start(cfg, "m", said.append).step == 5
    assert any("data.seed=9 instead of 42" in line for line in said)
    with pytest.raises(UserError, match="checkpoint of another model"):
        choose_start(cfg, "other", said.append)
    assert choose_start(_config(tmp_path / "none"), "m", said.append).folder is None


def test_starting_anew_puts_the_earlier_run_aside(tmp_path):
    run = tmp_path / "run"
    save(run, 5)
    said = []
    for k in (1, 2):
        assert choose_start(_config(run, resume_mode="disable"), "m", said.append).folder is None
        assert (tmp_path / f"run.old-{k}").is_dir() and not run.exists()
        save(run, 6)
    assert "is now" in said[0]


def test_a_write_that_fails_leaves_the_earlier_one_and_no_part(tmp_path):
    checkpoints = save(tmp_path, 5)

    def full(folder: Path) -> None:
        writer()(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match=r"step 10 could not be written.*No space left.*GB free.*global_step_5 is whole and stays"):
        checkpoints.save(10, full, STATE)
    assert names(tmp_path) == ["global_step_5", "latest_checkpointed_iteration.txt"]
    with pytest.raises(SaveError, match="no earlier one"):
        Checkpoints(tmp_path / "new", 2).save(1, full, STATE)


def test_a_state_that_is_no_json_is_a_bug_and_not_a_full_disk(tmp_path):
    with pytest.raises(TypeError):
        Checkpoints(tmp_path, 2).save(1, writer(), {"step": object()})
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from trainer.checkpoint import Checkpoints, SaveError
from tests.test_actor import batch, run, settings
from trainer.workers.actor import Actor
model, out = Path(sys.argv[1]), Path(sys.argv[2])
actor = Actor(settings(model))
checkpoints = Checkpoints(out, 2)
checkpoints.save(1, lambda folder: actor.save(str(folder)), {"step": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow further: what a full disk does
try:
    checkpoints.save(2, lambda folder: actor.save(str(folder)), {"step": 2})
except SaveError as error:
    print("SaveError:", error)
"""


@pytest.mark.slow
def test_no_room_for_a_real_checkpoint(random_model, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(random_model), str(tmp_path)], cwd=ROOT, capture_output=True, check=False, text=True
    )
    assert "SaveError: the checkpoint of step 2 could not be written" in result.stdout, result.stderr
    assert "global_step_1 is whole and stays" in result.stdout
    assert names(tmp_path) == ["global_step_1", "latest_checkpointed_iteration.txt"]


def test_where_weights_for_evaluation_are(tmp_path):
    save(tmp_path, 5, 10)
    wanted = tmp_path / "global_step_10" / "huggingface"
    for path in (tmp_path, tmp_path / "global_step_10", tmp_path / "global_step_10" / "actor", wanted):
        assert model_folder(path) == wanted
    assert model_folder(tmp_path / "global_step_5") == tmp_path / "global_step_5" / "huggingface"
    (tmp_path / "empty").mkdir()
    assert model_folder(tmp_path / "empty") is None
    assert [step_in(str(path)) for path in (wanted, tmp_path / "global_step_5", tmp_path)] == [10, 5, 0]
    (tmp_path / "global_step_10" / "training" / "shard").unlink()
    assert model_folder(tmp_path) == tmp_path / "global_step_5" / "huggingface"
    with pytest.raises(UserError, match=r"global_step_10 is not a whole checkpoint \(training/shard is missing\)"):
        model_folder(tmp_path / "global_step_10")


def test_one_process_at_a_time(tmp_path):
    code = f"from pathlib import Path; from trainer.files import held\nwith held(Path({str(tmp_path / 'lock')!r}), 'the run'): pass"
    with held(tmp_path / "lock", "the run"):
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False, text=True)
    assert f"the run is already going on (process {os.getpid()})" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_files_are_written_whole(tmp_path):
    file = tmp_path / "a" / "b.jsonl"
    write_jsonl(file, [{"x": "漢"}, {"x": 1}])
    assert "漢" in file.read_text() and names(file.parent) == ["b.jsonl"]
    with file.open("a") as stream:
        stream.write('{"x": 2}\n{"x":')  # an appender that was killed
    assert read_jsonl(file) == [{"x": "漢"}, {"x": 1}, {"x": 2}]
    write_text(file, "new")
    assert file.read_text() == "new"
    assert set_aside(tmp_path / "nothing") is None
