"""Ten thousand mixed verdicts through the pool: every one right, and no process, file or memory left behind."""

import json
import os
import random
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from trainer.rewards.pool import VerifierPool
from trainer.types import Outcome

PROGRAM = "```python\nprint(int(input()) + 1)\n```"
TESTS = json.dumps({"inputs": ["41"], "outputs": ["42"], "testtype": "stdin", "fn_name": "", "time_limit": 0.2})
CALLS = json.dumps([{"Action": "f", "Action_Input": '{"x": 1}'}])
CALL = 'Action: f\nAction Input: {"x": %d}'
MIX = [  # (share, data source, response, ground truth, outcome)
    (0.25, "sciknoweval", "<answer>B</answer>", "B", Outcome.PASS),
    (0.15, "sciknoweval", "B", "B", Outcome.FORMAT),
    (0.15, "tooluse", CALL % 1, CALLS, Outcome.PASS),
    (0.10, "tooluse", CALL % 2, CALLS, Outcome.FAIL),
    (0.10, "gsm8k", "So \\boxed{1,234}.", "1234", Outcome.PASS),
    (0.10, "math500", "So \\boxed{x^2+1}.", "1+x^2", Outcome.PASS),
    (0.0479, "math500", "So \\boxed{2\\sqrt{3}}.", "2\\sqrt{2}", Outcome.FAIL),
    (0.05, "livecodebench", PROGRAM, TESTS, Outcome.PASS),
    (0.02, "livecodebench", PROGRAM.replace("+ 1", "+ 2"), TESTS, Outcome.FAIL),
    (0.01, "livecodebench", "```python\nimport os\nwhile True: os.fork()\n```", TESTS, Outcome.FAIL),
    (0.01, "livecodebench", "```python\nx = bytearray(1 << 40)\n```", TESTS, Outcome.FAIL),
    (0.001, "livecodebench", "```python\nwhile True: pass\n```", TESTS, Outcome.TIMEOUT),
    (0.001, "math500", "So \\boxed{1}.", "", Outcome.ERROR),
    (0.0001, "math500", "So \\boxed{2}.", "{", Outcome.ERROR),
]


def judge(pool: VerifierPool, count: int, seed: int) -> None:
    """Judge so many of the mix in random order, and check every outcome."""
    picked = random.Random(seed).choices(MIX, weights=[share for share, *_ in MIX], k=count)
    asked: list[tuple[Future, Outcome, str]] = []
    for _, source, response, truth, outcome in picked:
        asked.append((pool.submit(source, response, truth, {"truncated": False}), outcome, response))
    wrong = [(response, verdict) for future, outcome, response in asked if (verdict := future.result()).outcome != outcome]
    assert not wrong, wrong[:3]


def footprint(temp: Path) -> dict[str, float]:
    """What this process and all below it hold: processes, open files, MB of memory; and what lies in the temp folder and /dev/shm."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    shared = [path for path in Path("/dev/shm").iterdir() if path.name.startswith("mopd")]
    return {
        "processes": len(family),
        "files": sum(len(os.listdir(f"/proc/{process.pid}/fd")) for process in family),
        "memory": sum(process.memory_info().rss for process in family) / 2**20,
        "left": sum(1 for _ in temp.rglob("*")) + len(shared),
    }


def settled(temp: Path) -> dict[str, float]:
    """The footprint once the hosts have reaped their last program and forked the spare for the next: the same for a second."""
    seen, since = -1, time.monotonic()
    for _ in range(300):
        now = len(psutil.Process().children(recursive=True))
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > 1.0:
            break
        time.sleep(0.05)
    return footprint(temp)


@pytest.mark.slow
def test_ten_thousand_verdicts_leave_nothing_behind(monkeypatch):
    with tempfile.TemporaryDirectory() as temp:
        os.chmod(temp, 0o755)  # the sandbox's user must reach its box
        monkeypatch.setenv("TMPDIR", temp)
        pool = VerifierPool(2, timeout=20.0, options={"code_timeout": 20.0, "code_memory": 256})
        try:
            judge(pool, 1500, seed=0)  # both workers have imported everything, filled their caches and started their sandbox
            before = settled(Path(temp))
            judge(pool, 10_000, seed=1)
            after = settled(Path(temp))
        finally:
            pool.close()
        assert not list(Path(temp).iterdir())
    assert after["processes"] <= before["processes"] and after["left"] <= before["left"]
    assert after["files"] <= before["files"] + 4  # a file being passed just then
    assert after["memory"] <= before["memory"] + 40, (before, after)
