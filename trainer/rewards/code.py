"""Code: the program of a response against the tests of its problem, in the sandbox.

`ground_truth` is the tests JSON (behaviour 1.3): `inputs`, `outputs`, `testtype` (stdin, functional or code), `fn_name`,
`time_limit` in seconds of CPU per test, optionally `context` (code put before the program) and `public` (how many of the
first tests the statement shows). The reward is 1 when every test passes, `acc` the share that does.
"""

import ast
import atexit
import functools
import json
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trainer.rewards import code_feedback
from trainer.rewards.outputs import same_output, same_value
from trainer.rewards.sandbox import Job, Limits, Result, Sandbox, wire
from trainer.rewards.thinking import after_thinking
from trainer.types import Outcome, Verdict

MAX_TIMEOUTS = 3  # tests after so many timed-out ones are not run and count as not passed
LANES = 2  # tests of one response that run side by side, each in a sandbox of its own
PRED_CHARACTERS = 5000
_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$")
_INLINE = re.compile(r"```(?:python|py)[ \t]+([^\n`]+)```")
_PYTHON = re.compile(r"\W*(python|py)([\W\d]\S*)?", re.IGNORECASE)


class UndecidedError(Exception):
    """The time for all tests is over, and none has failed."""


@dataclass(frozen=True)
class Tests:
    """The tests of one problem."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    kind: str
    function: str
    seconds: float
    context: str
    public: int

    @classmethod
    def parse(cls, text: str) -> "Tests":
        """Read a tests JSON. Raises ValueError naming what is wrong: the data's fault, so the verdict is an error."""
        try:
            tests = json.loads(text)
            inputs, outputs, kind = tests["inputs"], tests["outputs"], tests["testtype"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"the tests {text[:80]!r} cannot be read ({type(error).__name__}: {error})") from None
        if kind not in _RUNNERS:
            raise ValueError(f"testtype={kind!r}: must be one of {', '.join(_RUNNERS)}")
        if not inputs or len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs: there must be as many of both, and at least one")
        return cls(
            inputs=inputs,
            outputs=outputs,
            kind=kind,
            function=tests.get("fn_name") or "",
            seconds=float(tests.get("time_limit") or 1),
            context=tests.get("context") or "",
            public=int(tests.get("public") or 0),
        )


@dataclass(frozen=True)
class TestRun:
    """What one test showed. `kind` is pass, wrong, error, time, memory or output; `error` as the program's report has it."""

    kind: str
    actual: str = ""
    error: Mapping[str, Any] | None = None


def exact(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Judge a program; printed numbers must be equal (livecodebench)."""
    return _verify(response, ground_truth, extra_info, tolerant=False)


def tolerant(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Judge a program; printed fractional numbers may differ by 1e-6 (codeforces)."""
    return _verify(response, ground_truth, extra_info, tolerant=True)


def _verify(response: str, ground_truth: str, extra_info: Mapping[str, Any], *, tolerant: bool) -> Verdict:
    """Judge a program.

    `extra_info` may hold `feedback_tests` ("public" or "all"), `code_timeout` (seconds for all tests of a response) and
    `code_memory` (MiB). Raises ValueError for tests that cannot be read, UndecidedError when the tests took longer
    than `code_timeout` without one failing: then nothing is known of the program.
    """
    tests = _tests(ground_truth)
    source = extract(response)
    if source is None:
        details = {"error_in_test_cases": 0, "timed_out": 0}
        return Verdict(Outcome.FORMAT, 0.0, 0.0, incorrect_format=True, feedback=code_feedback.FORMAT_FEEDBACK, details=details)
    runs = _run_tests(tests, source, extra_info, tolerant)
    count, passed = len(tests.inputs), sum(run.kind == "pass" for run in runs)
    failed = {run.kind for run in runs} - {"pass"}
    outcome = Outcome.PASS if passed == count else Outcome.TIMEOUT if failed == {"time"} else Outcome.FAIL
    return Verdict(
        outcome,
        reward=float(passed == count),
        acc=passed / count,
        pred=_writable(str([run.actual for run in runs])[-PRED_CHARACTERS:]),
        feedback=_writable(code_feedback.feedback(tests, runs, show_all=extra_info.get("feedback_tests") == "all")),
        details={
            "error_in_test_cases": int(bool(failed & {"error", "memory"})),
            "timed_out": int("time" in failed),
            "tests_passed": passed,
            "tests_total": count,
        },
    )


def _writable(text: str) -> str:
    """Return a text that any file takes: a program can raise half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def extract(response: str) -> str | None:
    """Return the program of a response: the last closed block marked as Python, else the last one with no mark.

    Of several, the last that is Python at all: usage is often shown after the program. The published scorer takes the
    longest block of any kind, so that a long sample output beats the program.
    """
    response = after_thinking(response)
    blocks = [*reversed(_blocks(response, glued=False)), *reversed(_blocks(response, glued=True))]
    marked = [body for mark, body in blocks if _PYTHON.fullmatch(mark)]
    found = marked or _INLINE.findall(response)[::-1] or [body for mark, body in blocks if not mark]
    if len(set(found)) > 1:
        found = [body for body in found if _is_python(body)] or found
    return found[0] if found and found[0].strip() else None


def _blocks(response: str, *, glued: bool) -> list[tuple[str, str]]:
    """Return mark and body of every closed block. glued: a fence may also close at the end of the code's last line."""
    blocks, opened = [], None
    for line in re.split(r"\r?\n", response):  # and at nothing else that `splitlines` knows: a literal may hold it
        fence = _FENCE.match(line)
        if fence and (opened is None or (fence[3] and not opened[2] and fence[2].startswith(opened[1]))):
            opened = (*fence.groups(), [])  # a mark only stands where a block begins, so what was open was a stray fence
            continue
        if opened is None:
            continue
        indent, ticks, mark, body = opened
        closes = fence is not None and fence[2].startswith(ticks) and not fence[3]
        ends = glued and line.rstrip().endswith(ticks)
        if not closes:
            code = line[: len(indent)].lstrip(" \t") + line[len(indent) :]  # a block in a list is indented as a whole
            body.append(code.rstrip().rstrip(ticks[0]) if ends else code)
        if closes or ends:
            blocks.append((mark, "\n".join(body)))
            opened = None
    return blocks


def _is_python(text: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deep for the parser
        return False
    return bool(text.strip())


def _run_tests(tests: Tests, source: str, extra_info: Mapping[str, Any], tolerant: bool) -> list[TestRun]:
    """Run the tests in order, `LANES` at a time; what is returned does not depend on how many that are."""
    limits = Limits(cpu=tests.seconds, memory=int(extra_info.get("code_memory", 1024)) << 20)
    deadline = time.monotonic() + float(extra_info.get("code_timeout", 300.0))
    run = functools.partial(_RUNNERS[tests.kind], source, tests, limits, tolerant)
    texts = [source, tests.context, *(map(str, tests.inputs) if tests.kind == "code" else [])]  # what may import numpy
    sandboxes = [_sandbox(any("numpy" in text for text in texts), lane) for lane in range(LANES)]
    runs: list[TestRun] = []
    for pairs in _batches(zip(tests.inputs, tests.outputs, strict=True)):
        if runs and time.monotonic() > deadline:
            if all(run.kind == "pass" for run in runs):
                raise UndecidedError(f"only {len(runs)} of {len(tests.inputs)} tests ran within reward.code_timeout, all passed: raise it")
            break
        runs += _threads().map(run, sandboxes, *zip(*pairs, strict=True))
        timeouts = [i for i, run_ in enumerate(runs) if run_.kind == "time"]
        if len(timeouts) >= MAX_TIMEOUTS:
            return runs[: timeouts[MAX_TIMEOUTS - 1] + 1]
    return runs


def _batches(pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[tuple[Any, Any], ...]]:
    while batch := tuple(islice(pairs, LANES)):
        yield batch


def _stdin(source: str, tests: Tests, limits: Limits, tolerant: bool, sandbox: Sandbox, given: Any, expected: Any) -> TestRun:
    text = given if isinstance(given, str) else json.dumps(given)
    # Where numbers must be equal it is LiveCodeBench's judge, who imports before the program what its statements count on.
    result = sandbox.run([Job("run", source, text, context=tests.context, site=not tolerant)], limits)
    failure = _failure(result)
    if failure is not None:
        return failure
    right = same_output(result.stdout, expected if isinstance(expected, str) else json.dumps(expected), tolerant=tolerant)
    return TestRun("pass" if right else "wrong", _beginning(result.stdout))


def _beginning(text: str) -> str:
    """Return what is kept of an output: megabytes a test would soon be the memory."""
    text = text.strip()
    return text if len(text) <= PRED_CHARACTERS else text[:PRED_CHARACTERS] + "..."


def _functional(source: str, tests: Tests, limits: Limits, tolerant: bool, sandbox: Sandbox, given: Any, expected: Any) -> TestRun:
    call = wire.dumps(arguments(given))
    result = sandbox.run([Job("call", source, call, tests.function, tests.context)], limits)
    failure = _failure(result)
    if failure is not None:
        return failure
    wanted = _json(expected)
    try:
        value = wire.loads(json.dumps(result.report["value"]))
        return TestRun("pass" if same_value(value, wanted) else "wrong", _beginning(repr(value)))
    except Exception:  # noqa: BLE001  it ended before its function returned, or wrote nonsense, which may raise anything
        return TestRun("error", error={"type": "RuntimeError", "message": "the program ended before its function returned"})


def _assertions(source: str, tests: Tests, limits: Limits, tolerant: bool, sandbox: Sandbox, given: Any, expected: Any) -> TestRun:
    test, program = Job("check", str(given), function=tests.function, context=tests.context), Job("serve", source, context=tests.context)
    result = sandbox.run([test, program], limits)
    if result.exit_code == 0 and result.report.get("ok") is True:
        return TestRun("pass")
    error = _error(result.report) or {}
    if error.get("type") == "ProgramError":  # the program's own end says more than that it was missed
        own = _error(result.reports[1])
        return TestRun("error", error=own or {"type": "RuntimeError", "message": "the program ended before its test did"})
    if error and (error.get("type") == "AssertionError" or not (error.get("frames") or error.get("type") == "NameError")):
        return TestRun("wrong")
    return _failure(result) or TestRun("wrong")


_RUNNERS: dict[str, Callable[..., TestRun]] = {"stdin": _stdin, "functional": _functional, "code": _assertions}


def _error(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the error of a report; a program may have written anything there."""
    error = report.get("error")
    return error if isinstance(error, dict) else None


def _failure(result: Result) -> TestRun | None:
    """Return why a program did not come to its end, None if it did."""
    error = _error(result.report) or {}
    if result.killed == "time" or (result.signal == signal.SIGKILL and result.cpu >= 1):  # the second: by its own CPU limit
        return TestRun("time")
    if result.killed == "memory":
        return TestRun("memory", error={"type": "MemoryError", "message": "the program used more memory than allowed"})
    if "File too large" in str(error.get("message")):
        return TestRun("output", error={"type": "OutputLimit", "message": "the program wrote more than allowed"})
    if result.signal or result.exit_code:
        ended = f"the program was ended by signal {result.signal}" if result.signal else f"exit code {result.exit_code}"
        return TestRun("error", error=error or {"type": "RuntimeError", "message": ended})
    return None


def arguments(given: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and named arguments of a functional test.

    A list is the arguments, a dict named ones, a string JSON values one after another (blanks or line ends between, as
    LiveCodeBench has them). Raises ValueError for a string that is none of it.
    """
    if isinstance(given, dict):
        return [], given
    if not isinstance(given, str):
        return (list(given), {}) if isinstance(given, list) else ([given], {})
    values, place, decoder = [], 0, json.JSONDecoder()
    while rest := given[place:].lstrip():
        try:
            value, end = decoder.raw_decode(rest)
        except ValueError as error:
            raise ValueError(f"the test input {given[:80]!r} is not JSON values one after another ({error})") from None
        values.append(value)
        place = len(given) - len(rest) + end
    return values, {}


def _json(expected: Any) -> Any:
    if not isinstance(expected, str):
        return expected
    try:
        return json.loads(expected)
    except ValueError:  # a bare word is the string itself
        return expected


@functools.lru_cache(maxsize=2)  # the rollouts of a prompt come together, and tests may have tens of megabytes
def _tests(text: str) -> Tests:
    return Tests.parse(text)


@functools.cache
def _sandbox(numpy: bool, lane: int) -> Sandbox:
    """Return one of this process's sandboxes; programs that mention numpy have some that have imported it."""
    sandbox = Sandbox(("numpy",) if numpy else ())
    atexit.register(sandbox.close)
    return sandbox


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LANES)
