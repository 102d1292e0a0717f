"""Sinks: what is logged arrives in metrics.jsonl, in TensorBoard's event files and in an offline W&B run."""

import json
import time

import pytest
import yaml

from tests.tools import overrides
from trainer import config
from trainer.files import read_jsonl
from trainer.tracking import Tracker


def tracker(tmp_path, *more: str, resume_step: int | None = None) -> Tracker:
    return Tracker(config.load("sdpo", [*overrides("no-model", tmp_path, tmp_path), *more]), resume_step=resume_step)


def test_the_log_folder_says_what_ran(tmp_path):
    tracker(tmp_path).close()
    assert yaml.safe_load((tmp_path / "logs" / "config.yaml").read_text())["data"]["max_response_length"] == 40
    versions = json.loads((tmp_path / "logs" / "versions.json").read_text())
    assert versions["torch"].startswith("2.") and versions["python"].startswith("3.")


def test_a_resumed_run_logs_again_what_came_after_its_checkpoint(tmp_path):
    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.log({"x": step}, step)
    first.close()
    second = tracker(tmp_path, resume_step=2)
    second.log({"x": 30}, 3)
    second.close()
    assert read_jsonl(tmp_path / "logs" / "metrics.jsonl") == [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 3, "x": 30}]


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = tracker(tmp_path, "trainer.logger=[console,tensorboard]")
    for step in (1, 2):
        sinks.log({"actor/pg_loss": step / 2}, step)
    sinks.close()
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("actor/pg_loss")] == [(1, 0.5), (2, 1.0)]


@pytest.mark.slow
def test_wandb_offline_needs_no_account_and_names_the_run(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    sinks = tracker(tmp_path, "trainer.logger=[console,wandb]", "trainer.experiment_name=trial", "trainer.project_name=of-mopd")
    sinks.log({"actor/pg_loss": 0.25}, 1)
    sinks.close()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*-of-mopd-trial-*")
    (file,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 30  # W&B's own process writes it
    while b"actor/pg_loss" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"actor/pg_loss" in file.read_bytes()
