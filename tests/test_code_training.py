"""A tiny model learns to program: rollouts are programs, the sandbox runs them, and the reward is theirs."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.preprocess import to_row, write_parquet
from experiments.tiny import base
from experiments.tiny.tokenizer import make_tokenizer
from tests.tools import distill, in_process, overrides
from trainer import config
from trainer.files import read_jsonl
from trainer.models import load_chat

TASK = "{} {}"
PROGRAM = "```python\nprint({})\n```"
EXPRESSIONS = ("a+b", "a-b", "int(a)+int(b)")  # the first two are not what is asked, the last is


def write_model(folder: Path) -> Path:
    """Write a model that answers with one of three programs at random."""
    texts = [TASK.format("1", "2"), PROGRAM, "0123456789", "a,b=input().split()", *EXPRESSIONS]
    make_tokenizer(folder, texts, distill())
    chat = load_chat(str(folder), {})

    def draw(rng: np.random.Generator) -> base.Example:
        prompt = chat.prompt_ids([{"role": "user", "content": TASK.format(rng.integers(10), rng.integers(10))}])
        program = f"```python\na,b=input().split()\nprint({rng.choice(EXPRESSIONS)})\n```"
        return base.example(chat, prompt, program)

    shape = base.Shape(hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    base.warm_up(folder, chat, shape, base.WarmUp(steps=120, batch=16, lr=1e-2), draw, "programs")
    return folder


def write_problems(folder: Path) -> Path:
    """Write problems "add two numbers", each with a public and a hidden test."""
    rng, records = np.random.default_rng(0), []
    for number in range(16):
        pairs = rng.integers(10, 99, (2, 2))
        tests = {
            "inputs": [f"{a} {b}\n" for a, b in pairs],
            "outputs": [f"{a + b}\n" for a, b in pairs],
            "testtype": "stdin",
            "fn_name": "",
            "time_limit": 1,
            "public": 1,
        }
        prompt = TASK.format(*rng.integers(0, 10, 2))
        records.append({"kind": "code", "dataset": "livecodebench", "prompt": prompt, "tests": json.dumps(tests), "idx": number})
    for split in ("train", "test"):
        write_parquet((to_row(record, split, "test") for record in records), folder / f"{split}.parquet")
    return folder


@pytest.mark.slow
def test_a_tiny_model_learns_to_program(tmp_path):
    model, data = write_model(tmp_path / "model"), write_problems(tmp_path / "data")
    more = ["trainer.total_training_steps=12", "trainer.test_freq=12", "actor_rollout_ref.actor.optim.lr=1e-3"]
    settings = [o for o in overrides(model, data, tmp_path, *more, n=8) if "self_distillation" not in o]
    with in_process(config.load("baseline_grpo", settings)) as loop:
        loop.run()
        before, after = (v["sources"]["livecodebench"] for v in (loop.first_validation, loop.last_validation))
    assert before["solved/mean@4"]["value"] < 0.6 and after["solved/mean@4"]["value"] > 0.8
    rows = [row for step in range(1, 13) for row in read_jsonl(tmp_path / "rollouts" / f"{step}.jsonl")]
    assert {row["outcome"] for row in rows} >= {"pass", "fail"}
    wrong = next(row for row in rows if "print(a+b)" in row["output"] and row["finished"])
    assert wrong["outcome"] == "fail" and wrong["tests_total"] == 2 and "Test Case 1: Wrong Answer" in wrong["feedback"]
    broken = next(row for row in rows if "print(a-b)" in row["output"] and row["finished"])
    assert broken["error_in_test_cases"] == 1 and "TypeError: unsupported operand" in broken["feedback"]
