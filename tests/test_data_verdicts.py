"""Prompt, record and verifier agree: an answer in the format that the prompt asks for passes, a wrong one fails, for every source."""

import json

import pytest

from data.rows import to_row
from data.sources import SOURCES, Options
from tests.raw_rows import ROWS
from trainer.rewards import verify
from trainer.types import Outcome

SUM = "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))"
CODE = {  # name -> right, wrong
    "livecodebench/code_generation_lite": (SUM, SUM.replace("sum(", "max(")),
    "livecodebench/code_generation_lite-v6": ("def longest(words, k):\n    return len(words[0])", "def longest(words, k):\n    return 0"),
    "open-r1/codeforces": (
        "n, m, a = map(int, input().split())\nprint(-(-n // a) * -(-m // a))",
        "n, m, a = map(int, input().split())\nprint(n * m)",
    ),
    "Qwen/CodeElo": ("print('YES' if len(input()) == 4 else 'NO')", "print('YES')"),
    "evalplus/humanevalplus": ("def double(x: int) -> int:\n    return 2 * x", "def double(x: int) -> int:\n    return 4"),
    "evalplus/mbppplus": (ROWS["evalplus/mbppplus"]["code"], "def shared(a, b):\n    return ()"),
}


def answers(record: dict) -> tuple[str, str]:
    """Return a right and a wrong response in the format that the prompt asks for."""
    gold, other = record["answer"], "A" if record["answer"] != "A" else "B"
    if record["dataset"] == "sciknoweval":
        return tuple(f"<reasoning>\nBecause.\n</reasoning>\n<answer>\n{letter}\n</answer>" for letter in (gold, other))
    if record["dataset"] == "mmlu_pro":
        return tuple(f"Mercury melts early, so the answer is ({letter})." for letter in (gold, other))
    if record["dataset"] == "gpqa":
        return tuple(f"Mercury melts early: \\boxed{{{letter}}}" for letter in (gold, other))
    if record["dataset"] == "tooluse":
        (call,) = json.loads(gold)
        return tuple(f"Thought: flip.\nAction: {name}\nAction Input: {call['Action_Input']}" for name in (call["Action"], "roll"))
    return f"So it is \\boxed{{{gold}}}.", f"So it is \\boxed{{{gold}1}}."


@pytest.mark.parametrize("published", [False, True], ids=["own", "published"])
@pytest.mark.parametrize("name", ROWS)
def test_right_passes_and_wrong_fails(name, published):
    record = SOURCES[name].convert(ROWS[name], Options(published_prompts=published))
    row = to_row(record, "train", "here", published=published)
    right, wrong = (f"Like this:\n```python\n{code}\n```" for code in CODE[name]) if name in CODE else answers(record)
    verdicts = [verify(row["data_source"], response, row["reward_model"]["ground_truth"], row["extra_info"]) for response in (right, wrong)]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.PASS, Outcome.FAIL], verdicts
