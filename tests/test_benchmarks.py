"""The benchmarks run and say what they measured; how fast is not tested here."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks import distill_step, divergence, rollout, step_time, tools, verifiers
from tests.tools import ROOT

pytestmark = pytest.mark.slow


def test_a_step_by_phase(tmp_path):
    results = step_time.measure("0.5m", prompts=2, rollouts=8, tokens=32, steps=2, device="cpu")
    seconds = results["seconds"]
    assert set(step_time.PHASES) < set(seconds) and all(seconds[name] > 0 for name in step_time.PHASES)
    assert sum(value for name, value in seconds.items() if name != "step") == pytest.approx(seconds["step"])
    assert results["tokens_per_second"]["step"] > 0 and results["settings"]["parameters"] > 400_000
    written = json.loads(tools.write_results("step_time", results, tmp_path / "out.json").read_text())
    assert written["seconds"] == seconds and written["machine"]


def test_rollouts_beside_generate(guessing_model, tmp_path):
    rows = rollout.measure(guessing_model, ["hf", "vllm"], [1, 8], tokens=6, repeats=2)
    assert [row["sequences"] for row in rows] == [1, 8]
    for row in rows:
        assert all(row[name] > 0 for name in ("hf", "vllm", "generate")) and row["ratio"].keys() == {"hf", "vllm"}
        assert row["ratio"]["hf"] == pytest.approx(row["hf"] / row["generate"], rel=1)
    rollout.plot(rows, "both", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_verifiers_by_process_and_through_the_pool():
    row = verifiers.measure("tool use", processes=2, seconds=0.2)
    assert row["per_second"] > 0 and 0 < row["p50_ms"] <= row["p99_ms"]
    assert verifiers.measure_pool("tool use", 2, verdicts=20) > 0


def test_the_divergence_beside_the_plain_way(tmp_path):
    command = [sys.executable, "-m", "benchmarks.divergence", "--tokens", "64", "--hidden", "32", "--words", "3000", "--repeats", "2"]
    command += ["--memory-tokens", "64", "128", "--plain-tokens", "64", "--out", str(tmp_path / "out.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)  # which checks that all ways agree
    results = json.loads((tmp_path / "out.json").read_text())
    assert {"floor", "fused", "fused, exact", "plain"} <= set(results["seconds"]) and results["by_floor"]["floor"] == 1
    assert results["extra_bytes"]["plain"].keys() == {"64"} and results["extra_bytes"]["fused"].keys() == {"64", "128"}
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_ways_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr(divergence, "fused", lambda case: divergence.plain(case) * 1.01)
    with pytest.raises(AssertionError):
        divergence.check(divergence.Case(32, 16, 300, "cpu", torch.float32, None))


@pytest.mark.parametrize(("size", "total", "body"), [("0.6b", 0.6, 0.44), ("1.7b", 1.7, 1.4), ("4b", 4.0, 3.6), ("8b", 8.2, 6.95)])
def test_published_sizes_have_their_published_parameters(size, total, body):
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(tools.model_config(f"qwen3-{size}"))
    words = {id(p): p.numel() for p in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight)}
    assert lm.num_parameters() / 1e9 == pytest.approx(total, rel=0.02)
    assert (lm.num_parameters() - sum(words.values())) / 1e9 == pytest.approx(body, rel=0.02)


TINY = distill_step.Settings(size="0.5m", vocabulary=300, question=20, response_min=1, response_max=12, repeats=1)
WITHOUT = """import runpy, sys
absent = "ray vllm hydra omegaconf pyarrow datasets scipy pebble math_verify wandb tensorboard matplotlib".split()
sys.modules |= dict.fromkeys(absent)  # none of them can be imported or found
runpy.run_module("benchmarks.distill_step", run_name="__main__", alter_sys=True)
"""


def test_a_distillation_step_three_ways_where_little_is_installed(tmp_path):
    options = "--size 0.5m --vocabulary 300 --question 20 --response-min 1 --response-max 12 --repeats 2 --micro-batch 5"
    options += " --checkpointing --old-logp --stream-teacher --threads 1"
    command = [sys.executable, "-c", WITHOUT, *options.split(), "--out", str(tmp_path / "out.json")]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "no plot: matplotlib is not installed" in shown and "forest / padded, update time" in shown
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["machine"] and results["settings"]["micro_batch"] == 5
    assert all(value < 1e-4 for found in results["agreement"].values() for value in found.values())
    for way, found in results["ways"].items():
        seconds = {name: value["median"] for name, value in found["seconds"].items()}
        assert set(seconds) - {"update"} == {*distill_step.PHASES, *(["old_logp"] if way == "padded" else [])}
        assert sum(seconds[name] for name in distill_step.PHASES) == pytest.approx(seconds["update"], rel=0.5)
        assert found["peak_bytes_beyond_held"] > 0 and found["share_of_floor"]["update"] > 0
    distill_step.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are faster so
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("wrong", [{"alpha": 0.501}, {"temperature": float("nan")}])
def test_ways_that_compute_different_updates_are_not_compared(wrong, monkeypatch, one_thread):
    right = distill_step.fused_divergence
    monkeypatch.setattr(distill_step, "fused_divergence", lambda *args, **more: right(*args, **{**more, **wrong}))
    with pytest.raises(ValueError, match="do not compute the same update"):
        distill_step.compare(replace(TINY, ways=("forest", "padded")))


def test_the_forest_computes_at_most_half_of_the_padded_tokens():
    update = distill_step.Update(distill_step.Settings(size="0.5m", vocabulary=300), tools.model_config("0.5m", vocab_size=300))
    forest, packed, padded = (distill_step.token_counts(update, way) for way in ("forest", "packed", "padded"))
    assert forest["teacher"] <= 0.5 * padded["teacher"] and forest["teacher"] < packed["teacher"] < padded["teacher"]
    assert forest["student"] < packed["student"] < padded["student"]


def test_needed_operations_are_those_that_run(one_thread):
    config = tools.model_config("0.5m", vocab_size=300)
    update = distill_step.Update(TINY, config)
    with FlopCounterMode(display=False) as counter:
        update.backward("forest", update.meter())
    products = sum(n for operation, n in counter.get_flop_counts()["Global"].items() if "mm" in str(operation))
    products += 2 * config.hidden_size * 300 * update.response_tokens  # addmm_, which the counter does not know: the head's weight gradient
    assert products == distill_step.model_flops(update, config)["products"]
