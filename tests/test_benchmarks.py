"""The benchmarks run and say what they measured; how fast is not tested here."""

import json

import pytest

from benchmarks import rollout, step_time, tools, verifiers

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
