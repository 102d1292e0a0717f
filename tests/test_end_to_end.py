"""Runs as a user starts them: launch scripts, Ray, real processes, and what is left of them when they are killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.test_launch import ENV
from tests.tools import ROOT, overrides
from trainer.files import read_jsonl

pytestmark = pytest.mark.slow
QUIET = {**ENV, "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}


def script(name: str, *arguments: str, timeout: int = 400, **flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / name), *arguments], env={**QUIET, **flags}, capture_output=True, check=False, text=True, timeout=timeout
    )


class Run:
    """A run of the trainer in a session of its own."""

    def __init__(self, model: Path, data: Path, out: Path, *more: str, name: str = "sdpo") -> None:
        command = [sys.executable, "-m", "trainer.main", "--config-name", name, *overrides(model, data, out, *more)]
        self.out = out
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def wait(self) -> tuple[int, str, str]:
        stdout, stderr = self.process.communicate(timeout=180)
        return self.process.returncode, stdout, stderr

    def until(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.wait()
            assert time.monotonic() < deadline, "nothing came"
            time.sleep(0.02)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def assert_all_gone(processes: list[psutil.Process], *, but: str = "never") -> None:
    """Nothing is left but zombies and processes whose name contains `but`."""
    watched = [process for process in processes if process.is_running() and but not in process.name()]
    _, alive = psutil.wait_procs(watched, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def steps_logged(out: Path) -> int:
    file = out / "logs" / "metrics.jsonl"
    return max((row["step"] for row in read_jsonl(file)), default=0) if file.is_file() else 0


def metrics_of(out: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/", "memory/", "rollout/start_"))}
        for row in read_jsonl(out / "logs" / "metrics.jsonl")
    ]


def test_the_embedded_default_learns_and_can_be_evaluated(tmp_path):
    """What the README shows first: one command, before and after; then the checkpoint in the evaluation script."""
    made = script("run_local_sdpo.sh", "trainer.dry_run=True", timeout=900)  # the base model, minutes of one core if it is not there
    assert made.returncode == 0, made.stderr
    where = {name: str(tmp_path / name) for name in ("CKPT_DIR", "ROLLOUT_DATA_DIR", "VALIDATION_DATA_DIR")}
    result = script("run_local_sdpo.sh", "test", f"trainer.log_dir={tmp_path}/logs", **where)
    assert result.returncode == 0, result.stderr
    assert "before and after" in result.stdout and all(str(tmp_path / name) in result.stdout for name in where)
    rows = list(read_jsonl(tmp_path / "logs" / "metrics.jsonl"))
    trained = [row for row in rows if "memory/peak_gib" in row]
    assert len(trained) == 40 and trained[-1]["memory/predicted_gib"] == pytest.approx(trained[-1]["memory/peak_gib"], rel=0.2)
    validations = [row for row in rows if "val-core/tiny_chains/acc/mean@8" in row]
    before, after = (validations[i]["val-core/tiny_chains/acc/mean@8"] for i in (0, -1))
    assert after > before + 0.2
    assert validations[0]["val-core/tiny_chains/acc/pass@8"] <= validations[-1]["val-core/tiny_chains/acc/pass@8"] <= 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "CKPT_DIR/global_step_40/huggingface").num_parameters() > 400_000

    evaluation = script(
        "run_eval_sdpo.sh", f"trainer.log_dir={tmp_path}/eval-logs", CKPT_PATH=where["CKPT_DIR"], VALIDATION_DATA_DIR=str(tmp_path / "eval")
    )
    assert evaluation.returncode == 0, evaluation.stderr
    evaluated = read_jsonl(tmp_path / "eval-logs" / "metrics.jsonl")[0]
    assert evaluated["val-core/tiny_chains/acc/mean@8"] == after  # the same weights, seeds and prompts
    assert len(read_jsonl(tmp_path / "eval" / "40.jsonl")) == 128 * 8
    assert "mean@8" in evaluation.stdout and "pass@8" in evaluation.stdout

    vllm = {"ROLLOUT_BACKEND": "vllm", "VALIDATION_DATA_DIR": str(tmp_path / "vllm"), "ROLLOUT_DATA_DIR": str(tmp_path / "vllm")}
    steps = ("trainer.total_training_steps=20", "trainer.val_before_train=False", f"trainer.log_dir={tmp_path}/train-vllm")
    result = script("run_local_sdpo.sh", "vllm", *steps, **vllm, CKPT_DIR=str(tmp_path / "vllm-checkpoints"))
    assert result.returncode == 0, result.stderr
    rows = list(read_jsonl(tmp_path / "train-vllm" / "metrics.jsonl"))
    assert rows[-1]["val-core/tiny_chains/acc/mean@8"] > before + 0.15
    assert max(row["rollout/logp_gap_max"] for row in rows if "rollout/logp_gap_max" in row) < 1e-4


SIX = ("trainer.total_training_steps=6", "trainer.save_freq=3", "trainer.test_freq=3")


@pytest.fixture(scope="module")
def straight(once, guessing_model, chains_data) -> Path:
    """Six steps without interruption."""

    def run(out: Path) -> None:
        code, stdout, stderr = Run(guessing_model, chains_data, out, *SIX).wait()
        assert code == 0, stderr
        assert "before and after" in stdout and str(out / "checkpoints") in stdout

    return once("straight", run)


def weights(out: Path, step: int = 6) -> bytes:
    return (out / "checkpoints" / f"global_step_{step}" / "huggingface" / "model.safetensors").read_bytes()


def test_killed_and_resumed_is_straight_bit_for_bit(straight, guessing_model, chains_data, tmp_path):
    killed = Run(guessing_model, chains_data, tmp_path, *SIX)
    killed.until(lambda: (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").exists() and steps_logged(tmp_path) >= 4)
    processes = killed.descendants()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    assert len(processes) > 5
    assert_all_gone(processes, but="Agent")  # Ray's own two agents notice within a minute
    code, stdout, stderr = Run(guessing_model, chains_data, tmp_path, *SIX).wait()
    assert code == 0, stderr
    assert "resuming from" in stdout and "global_step_3" in stdout
    assert weights(tmp_path) == weights(straight)
    assert (tmp_path / "checkpoints/global_step_6/training/__0_0.distcp").read_bytes() == (
        straight / "checkpoints/global_step_6/training/__0_0.distcp"
    ).read_bytes()
    assert metrics_of(tmp_path) == metrics_of(straight)

    code, stdout, _ = Run(guessing_model, chains_data, tmp_path, *SIX).wait()
    assert code == 0 and "this run is complete: 6 steps of 6" in stdout and "before and after" in stdout


def test_two_ranks_train_what_one_does(straight, guessing_model, chains_data, tmp_path):
    code, _, stderr = Run(guessing_model, chains_data, tmp_path, *SIX, "trainer.n_gpus_per_node=2").wait()
    assert code == 0, stderr
    assert sorted(path.name for path in (tmp_path / "checkpoints/global_step_6/training").glob("*.distcp")) == [
        "__0_0.distcp",
        "__1_0.distcp",
    ]
    for one, two in zip(metrics_of(straight), metrics_of(tmp_path), strict=True):
        assert one["step"] == two["step"]
        for name in ("actor/pg_loss", "actor/grad_norm", "critic/score/mean", "self_distillation/divergence"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), (one["step"], name)


def test_an_engine_that_is_killed_costs_no_step_and_ctrl_c_saves(guessing_model, chains_data, tmp_path):
    """With two vLLM engines of their own, sampling a step ahead; afterwards no process is left."""
    more = ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n_gpus=2", "trainer.rollout_overlap=1")
    run = Run(guessing_model, chains_data, tmp_path, *more, "trainer.total_training_steps=5000", "trainer.val_before_train=False")
    run.until(lambda: steps_logged(tmp_path) >= 2)
    processes = run.descendants()
    [engine] = [p for p in processes if "Sampler" in " ".join(p.cmdline()) and "engine-1" in os.readlink(f"/proc/{p.pid}/fd/1")]
    engine.kill()
    run.until(lambda: any(row.get("rollout/engine_restarts") == 1 for row in metrics_of(tmp_path)))
    restarted = steps_logged(tmp_path)
    run.until(lambda: steps_logged(tmp_path) >= restarted + 3)
    processes += run.descendants()  # the one started in its place, too
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to everything in the foreground
    code, stdout, stderr = run.wait()
    assert code == 130, stderr
    step = int(re.search(r"interrupted: step (\d+) of 5000", stdout).group(1))
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, step + 1)) and metrics_of(tmp_path)[-1][
        "rollout/engine_restarts"
    ] == 1
    assert (tmp_path / "checkpoints" / f"global_step_{step}" / "manifest.json").is_file()
    assert "an engine was started again" in stdout and "engine-1 died" in stdout and "resume: python -m trainer.main" in stdout
    assert "engine and student agree: log-prob gap mean" in stdout
    assert_all_gone(processes)


def test_a_rank_that_dies_ends_the_run_with_what_to_do(guessing_model, chains_data, tmp_path):
    run = Run(
        guessing_model, chains_data, tmp_path, "trainer.total_training_steps=5000", "trainer.n_gpus_per_node=2", "trainer.save_freq=2"
    )
    run.until((tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").exists)
    processes = run.descendants()
    ranks = [process for process in processes if "_Rank" in " ".join(process.cmdline())]
    assert len(ranks) == 2
    [second] = [rank for rank in ranks if os.readlink(f"/proc/{rank.pid}/fd/1").endswith("rank-1.log")]  # started in either order
    second.kill()
    code, _, stderr = run.wait()
    assert code == 1
    assert "rank-1 died: " in stderr and "rank-1.log" in stderr and "resume: python -m trainer.main" in stderr
    assert_all_gone(processes)


def test_a_worker_that_raises_ends_the_run_with_its_own_traceback(guessing_model, chains_data, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(guessing_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)  # a whole file of another model's shapes
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code, _, stderr = Run(broken, chains_data, tmp_path / "out").wait()
    assert code == 1
    assert "build_lm" in stderr and "resume: python -m trainer.main" in stderr  # a frame of the worker's, not of the driver's


def test_teacher_student_and_grpo_by_script(guessing_model, chains_data, tmp_path):
    common = {"MODEL_PATH": str(guessing_model), "DATA_PATH": str(chains_data), "TRAIN_BATCH_SIZE": "4", "ROLLOUT_BATCH_SIZE": "4"}
    more = ["trainer.total_training_steps=2", "trainer.test_freq=0", "trainer.save_freq=2", f"trainer.log_dir={tmp_path}/logs"]
    where = {name: str(tmp_path / name) for name in ("CKPT_DIR", "ROLLOUT_DATA_DIR", "VALIDATION_DATA_DIR")}
    for name, extra in (("run_ts_sdpo.sh", {"TEACHER_MODEL_PATH": str(guessing_model)}), ("run_local_grpo.sh", {})):
        result = script(name, *more, "trainer.resume_mode=disable", **common, **where, **extra)
        assert result.returncode == 0, result.stderr
        assert steps_logged(tmp_path) == 2
    assert json.loads((tmp_path / "CKPT_DIR/global_step_2/trainer.json").read_text())["step"] == 2
