"""Verifiers: the verdicts, the table, a user's own function, and the pool that outlives what it runs."""

import os
import signal
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.rewards import CustomVerifier, verify
from trainer.rewards.pool import VerifierPool
from trainer.types import Outcome


@given(st.text())
def test_no_text_breaks_a_verifier(text):
    for source in ("sciknoweval", "tiny_chains"):
        assert verify(source, text, "B").outcome in (Outcome.PASS, Outcome.FAIL, Outcome.FORMAT)


def test_truncated_is_a_state_of_its_own_unless_right():
    cut = {"truncated": True}
    assert verify("sciknoweval", "<reasoning>and so on", "B", cut).outcome == Outcome.TRUNCATED
    assert verify("sciknoweval", "<answer>A</answer> hm", "B", cut).outcome == Outcome.TRUNCATED
    assert verify("sciknoweval", "<answer>B</answer> hm", "B", cut).outcome == Outcome.PASS


def test_tiny_task():
    assert verify("tiny_chains", "1+2=3\nAnswer:3", "3").outcome == Outcome.PASS
    assert verify("tiny_chains", "Answer:3\nAnswer:4", "3").outcome == Outcome.FAIL
    assert verify("tiny_misconceptions", "recall:B\nAnswer:B", "B").reward == 1


def test_unknown_source_lists_the_known():
    with pytest.raises(UserError, match=r"'tiny_chain': .*Did you mean 'tiny_chains'.*Known: .*gsm8k, .*sciknoweval, .*tiny_chains"):
        verify("tiny_chain", "x", "y")


CUSTOM = """
import os, time
from trainer.types import Outcome, Verdict

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "sleep": time.sleep(60)
    if solution_str == "die": os._exit(3)
    if solution_str == "raise": raise RuntimeError("verifier trouble")
    if solution_str == "dict": return {"score": 0.5, "acc": 0.25, "pred": 7, "feedback": "half", "tests": 4}
    if solution_str == "verdict": return Verdict(Outcome.PASS, 2.0, 1.0)
    return float(solution_str == ground_truth)
"""


def workers() -> list[int]:
    """The pids of verifier processes (multiprocessing's own resource tracker lives as long as this process)."""
    lines = {child.pid: " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)}
    return [pid for pid, line in lines.items() if "multiprocessing" in line and "tracker" not in line]


@pytest.fixture
def custom(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CUSTOM)
    return file


def test_a_users_own_function(custom, tmp_path):
    own = CustomVerifier(str(custom), "compute_score")
    assert own("any", "3", "3", {}).outcome == Outcome.PASS
    assert own("any", "4", "3", {}).outcome == Outcome.FAIL
    half = own("any", "dict", "3", {})
    assert (half.reward, half.acc, half.pred, half.feedback, half.details) == (0.5, 0.25, "7", "half", {"tests": 4})
    assert own("any", "verdict", "3", {}).reward == 2.0
    with pytest.raises(UserError, match="no function of that name"):
        CustomVerifier(str(custom), "score_it")
    with pytest.raises(UserError, match="no such file"):
        CustomVerifier(str(tmp_path / "none.py"), "compute_score")


@pytest.mark.slow
def test_pool_outlives_verifiers_that_hang_die_or_raise(custom):
    pool = VerifierPool(2, timeout=1.0, custom=(str(custom), "compute_score"))
    asked = ["3", "sleep", "raise", "die", "4", "3"]
    verdicts = [future.result() for future in [pool.submit("any", text, "3", {}) for text in asked]]
    assert [verdict.outcome for verdict in verdicts] == [
        Outcome.PASS,
        Outcome.ERROR,
        Outcome.ERROR,
        Outcome.ERROR,
        Outcome.FAIL,
        Outcome.PASS,
    ]
    reasons = [verdict.details.get("error", "") for verdict in verdicts]
    assert "no verdict within reward.timeout=1 s" in reasons[1] and "verifier trouble" in reasons[2] and "exit code 3" in reasons[3]
    assert pool.submit("any", "3", "3", {}).result().outcome == Outcome.PASS  # the next verdict is right
    pool.submit("any", "sleep", "3", {})
    pool.close()
    assert not workers()


@pytest.mark.slow
def test_pool_uses_the_table_and_survives_a_killed_worker():
    pool = VerifierPool(1)
    assert pool.submit("tiny_chains", "Answer:3", "3", {}).result().outcome == Outcome.PASS
    for worker in workers():
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 20
    outcome = None
    while outcome != Outcome.PASS and time.monotonic() < deadline:
        outcome = pool.submit("tiny_chains", "Answer:3", "3", {}).result().outcome
    assert outcome == Outcome.PASS
    pool.close()
