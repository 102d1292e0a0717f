"""The code verifier: which block is the program, what of Python works, when an output is right, what the feedback says."""

import json
import math
import multiprocessing
import os
import resource
import time
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.machine import cores
from trainer.rewards import code, outputs, verify
from trainer.rewards.pool import VerifierPool
from trainer.rewards.sandbox import Job, Limits, Sandbox, SandboxError, wire
from trainer.types import Outcome

GOLDEN = Path(__file__).parent / "golden"


def problem(kind="stdin", inputs=("41\n",), outputs=("42\n",), limit=2, **more) -> str:
    return json.dumps({"inputs": list(inputs), "outputs": list(outputs), "testtype": kind, "fn_name": "f", "time_limit": limit, **more})


def judge(program: str, tests: str | None = None, source: str = "livecodebench", **info):
    return verify(source, f"Some thoughts.\n\n```python\n{program}\n```\n", problem() if tests is None else tests, info)


# --- which block -----------------------------------------------------------------------------------------------------

BLOCKS = {
    "one": ("```python\nx = 1\n```", "x = 1"),
    "the last of two": ("```python\nx = 1\n```\nor\n```python\nx = 2\n```", "x = 2"),
    "a long output after it": ("```python\nx = 1\n```\nprints\n```\n1 2 3 4 5 6 7 8 9\n```", "x = 1"),
    "no mark": ("```\nx = 1\n```", "x = 1"),
    "another language": ("```cpp\nint x;\n```", None),
    "a mark with more in it": ('```python3 title="a.py"\nx = 1\n```', "x = 1"),
    "a mark in brackets": ("```{python}\nx = 1\n```", "x = 1"),
    "capitals": ("```Python\nx = 1\n```", "x = 1"),
    "tildes": ("~~~py\nx = 1\n~~~", "x = 1"),
    "in a list": ("1. so:\n   ```python\n   if x:\n       x = 1\n   ```", "if x:\n    x = 1"),
    "a stray fence before it": ("So:\n```\n\n```python\nx = 1\n```", "x = 1"),
    "closed on its last line": ("```python\nx = 1```\nprints\n```\n1\n```", "x = 1"),
    "a fence in a text of it": ('```python\nx = """a```\n"""\n```', 'x = """a```\n"""'),
    "a mark with a file": ("```python:main.py\nx = 1\n```", "x = 1"),
    "other ends of lines in a text": ("```python\r\nx = '\x0c\u2028'\r\n```", "x = '\x0c\u2028'"),
    "usage after it": ("```python\nx = 1\n```\nfor example\n```python\n>>> x\n1\n```", "x = 1"),
    "on one line": ("```python x = 1```", "x = 1"),
    "fences inside": ('````python\nx = """\n```\n"""\n````', 'x = """\n```\n"""'),
    "not closed": ("```python\nx = 1", None),
    "empty": ("```python\n\n```", None),
    "no block": ("x = 1", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_program_is_the_last_python_block(name):
    response, program = BLOCKS[name]
    assert code.extract(response) == program


@given(st.text(alphabet="`~pyx =\n1"))
def test_no_text_breaks_the_extraction(text):
    program = code.extract(text)
    assert program is None or program.strip()


# --- what works ------------------------------------------------------------------------------------------------------

ORDINARY = {  # each fails in the published sandbox (behaviour 2.3)
    "exceptions": "try:\n    int('x')\nexcept ValueError as e:\n    print(int(input()) + 1)\nfinally:\n    pass",
    "classes": "class A:\n    def __init__(self): self.n = 1\nclass B(A):\n    def __init__(self): super().__init__()\n"
    "    @staticmethod\n    def s(): return 1\n    @property\n    def p(self): return self.n\nprint(int(input()) + B().p)",
    "dataclasses": "from dataclasses import dataclass\n@dataclass(order=True)\nclass P:\n    n: int = 1\nprint(int(input()) + P().n)",
    "namedtuple": "from collections import namedtuple\nP = namedtuple('P', 'n')\nprint(int(input()) + P(1).n)",
    "divmod and friends": "print(divmod(84, 2)[0] if type(bin(3)) is str and hasattr(oct(3), 'upper') else complex(1))",
    "sys.exit": "import sys\nprint(int(input()) + 1)\nsys.exit()",
    "exit": "print(int(input()) + 1)\nexit(0)",
    "stdin.buffer": "import sys\nprint(int(sys.stdin.buffer.readline()) + 1)",
    "open(0)": "print(int(open(0).read()) + 1)",
    "os.read": "import os\nprint(int(os.read(0, 99)) + 1)",
    "stdout.write": "import sys\nsys.stdout.write(str(int(sys.stdin.readline()) + 1) + '\\n')",
    "stdout.buffer": "import sys\nsys.stdout.buffer.write(b'42')",
    "threads": "import threading\nr = []\nt = threading.Thread(target=lambda: r.append(int(input())))\nt.start(); t.join()\nprint(r[0]+1)",
    "a big stack in a thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
    "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(50000) - 49958))\nt.start(); t.join()",
    "recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(50000) - 49958)",
    "main guard": "def main():\n    print(int(input()) + 1)\nif __name__ == '__main__':\n    main()",
    "queue, copy, abc, os": "import abc, copy, os, queue\nq = queue.Queue(); q.put(int(input()))\nprint(copy.copy(q.get()) + 1)",
    "files of its own": "with open('a', 'w') as f: f.write('1')\nprint(int(input()) + int(open('a').read()))",
    "temporary files": "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nprint(int(input()) + 1)",
    "several processes": "from concurrent.futures import ProcessPoolExecutor as P\nimport multiprocessing\n"
    "r, w = multiprocessing.Pipe()\np = multiprocessing.get_context('fork').Process(target=lambda: w.send(1)); p.start(); p.join()\n"
    "print(int(input()) + r.recv())",
    "a pool of processes": "from concurrent.futures import ProcessPoolExecutor as P\nimport multiprocessing as m\n"
    "def f(n): return n + 1\nwith P(2, m.get_context('fork')) as p: print(list(p.map(f, [int(input())]))[0])",
    "pickle of its own class": "import pickle\nclass A:\n    n = 1\nprint(int(input()) + pickle.loads(pickle.dumps(A())).n)",
    "atexit": "import atexit\natexit.register(lambda: print(int(input()) + 1))",
    "numpy": "import numpy as np\nprint(np.array([int(input())]).sum() + 1)",
    "asyncio": "import asyncio\nasync def f(): return int(input()) + 1\nprint(asyncio.run(f()))",
    "typing": "from typing import List\nx: List[int] = [1]\nprint(int(input()) + x[0])",
    "walrus, match, f-strings": "match int(input()):\n    case n if (m := n + 1):\n        print(f'{m!s:>4}')",
    "unicode": "print(int(input()) + 1 if 'é'.encode() == b'\\xc3\\xa9' else 0)",
    "deep without asking": "def f(n): return n and 1 + f(n - 1)\nprint(f(20000) - 19958)",
    "what the judge has imported": "print(gcd(84, 126) * (len(deepcopy([1])) + pow(3, 2, 8) - collections.Counter('a')['a']))",
    "a barrier of threads": "import threading\nb = threading.Barrier(40); r = []\n"
    "ts = [threading.Thread(target=lambda: (b.wait(), r.append(1))) for _ in range(40)]\n[t.start() for t in ts]; [t.join() for t in ts]\n"
    "print(len(r) + 2)",
    "devices": "with open('/dev/stdin') as i, open('/dev/stdout', 'w') as o: o.write(str(int(i.read()) + 1))",
    "stdout replaced after printing": "import io, sys\nprint(42)\nsys.stdout = io.StringIO()",
    "stdout replaced until the end": "import atexit, io, sys\nsys.stdout = b = io.StringIO()\nprint(42)\n"
    "atexit.register(lambda: sys.__stdout__.write(b.getvalue()))",
    "stdout that only writes": "import os, sys\nclass W:\n    def write(self, x): os.write(1, x.encode())\nsys.stdout = W()\nprint(42)",
    "stdout detached": "import sys\no = sys.stdout.detach()\no.write(b'42')",
    "a file never closed": "f = open(1, 'w')\nf.write('42')",
    "a last word": "class A:\n    def __del__(self): print(42)\na = A()",
    "half a surrogate pair": "print(42)  # \ud800",
    "a context before it": "from __future__ import annotations\nprint(int(input()) + ONE)",
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_python_works(name):
    context = {"context": "ONE = 1"} if "context" in name else {}
    verdict = judge(ORDINARY[name], problem(**context))
    assert verdict.outcome == Outcome.PASS, verdict.feedback


FUNCTIONAL = {
    "arguments on lines": ("def f(a, b):\n    return a + [b]", '[1, 2]\n3', "[1, 2, 3]"),
    "arguments with blanks, nested": ("def f(a, b):\n    return [a, b]", '[[1, 2], [ ]] "a b"', '[[[1, 2], []], "a b"]'),
    "class Solution": ("class Solution:\n    def f(self, n: int) -> List[int]:\n        return [n]", "4", "[4]"),
    "tuples are lists": ("def f(n):\n    return (n, (n,))", "4", "[4, [4]]"),
    "3 is 3.0": ("def f(n):\n    return float(n)", "3", "3"),
    "floats are near": ("def f(n):\n    return n / 3", "1", "0.33333"),
    "named arguments": ("def f(b, a):\n    return a - b", {"a": 5, "b": 2}, 3),
    "a list of arguments": ("def f(a, b):\n    return a - b", [5, 2], 3),
    "strings": ("def f(s):\n    return s[::-1]", '"ab c"', '"c ba"'),
    "dicts": ("def f(s):\n    return Counter(s)", '"aab"', '{"a": 2, "b": 1}'),
    "what a site has imported": ("def f(a):\n    heapify(a)\n    return math.gcd(a[0], lru_cache(None)(lambda x: x)(4))", "[8, 6]", "2"),
    "big integers": ("def f(n):\n    return n ** 99", "7", str(7**99)),
    "none": ("def f(n):\n    return None", "7", "null"),
    "pow of three": ("def f(n):\n    return pow(n, 2, 7)", "3", "2"),
    "deep": ("class Solution:\n    def f(self, n): return n and 1 + self.f(n - 1)", "20000", "20000"),
    "more that is imported": ("def f(n): return [len(ascii_lowercase), deepcopy(n), string.digits[n], mean([n])]", "2", [26, 2, "2", 2]),
    "a method with the name of an import": ("class Solution:\n    def merge(self, a): return sorted(a)", "[3, 1]", "[1, 3]", "merge"),
    "a function with the name of an import": ("def merge(a): return sorted(a)", "[3, 1]", "[1, 3]", "merge"),
    "a helper with the name of the method": ("def f(n): return n\nclass Solution:\n    def f(self, n): return f(n) + 1", "3", "4"),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_functions_are_called_with_what_the_test_says(name):
    program, given, expected, *function = FUNCTIONAL[name]
    verdict = judge(program, problem("functional", [given], [expected], fn_name=(function or "f")[0]))
    assert verdict.outcome == Outcome.PASS, verdict.feedback


@pytest.mark.parametrize(
    ("returned", "expected"),
    [("[1, 2]", "[2, 1]"), ("'1'", "1"), ("0.3334", "0.33333"), ("10**18 + 1", "1000000000000000000"), ("[1]", "[1, 1]"), ("{1}", "[1]"),
     ("None", "0"), ("float('nan')", "1.5"), ("object()", "1"), ("range(1)", "[0]"), ("iter([1])", "[1]"), ("'\\ud800'", '"?"')],
)  # fmt: skip
def test_other_values_are_wrong(returned, expected):
    assert judge(f"def f(n): return {returned}", problem("functional", ["1"], [expected])).outcome == Outcome.FAIL


ASSERTED = """
def check(candidate):
    assert candidate([3, 1], {"a": (1, 2)}) == {3: ["a"], 1: (1, 2)}
    assert abs(candidate(None) - 0.5) < 1e-9
    assert candidate({1, 2}) == {2, 1} and candidate(b"x") == b"x" and candidate(1j) == 1j
    assert helper(2) == 4 and LIMIT == 9
    try:
        candidate("raise")
    except ValueError as error:
        assert str(error) == "no"
    else:
        assert False
check(f)
"""
ASSERTED_PROGRAM = """
LIMIT = 9
def helper(n): return n * n
def f(a, b=None):
    if b: return {a[0]: list(b), a[1]: b["a"]}
    if a is None: return 0.5
    if a == "raise": raise ValueError("no")
    return a
"""


def test_asserts_see_values_names_and_exceptions_of_the_program():
    assert judge(ASSERTED_PROGRAM, problem("code", [ASSERTED], [""])).outcome == Outcome.PASS
    assert judge(ASSERTED_PROGRAM.replace("0.5", "0.6"), problem("code", [ASSERTED], [""])).outcome == Outcome.FAIL


ASSERTS = {  # what travels between the test and the program: (program, test)
    "classes of the library": (
        "from collections import deque\nfrom datetime import *\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
        "def f(): return deque([1]), range(3), Decimal('.5'), Fraction(1, 2), date(2020, 1, 1), datetime(2020, 1, 1, 2), timedelta(1)",
        "import datetime as d\nq, *rest = f()\nq.append(2)\n"
        "assert list(q) == [1, 2] and rest == [range(3), .5, .5, d.date(2020, 1, 1), d.datetime(2020, 1, 1, 2), d.timedelta(1)]",
    ),
    "iterators": (
        "def f(n):\n    while True: yield n\ndef g(a): return map(str, a)\ndef h(): return {1: 2}.items()",
        "assert next(f(1)) == 1 and list(g([1])) == ['1'] != g([1]) and list(h()) == [(1, 2)]",
    ),
    "exceptions": (
        "class E(ValueError): pass\nclass W(KeyError):\n    def __str__(self): return 'w'\n"
        "def f(k): raise [E('a', 1), W(), KeyError('a')][k]",
        "def g(k):\n    try: f(k)\n    except (ValueError, KeyError) as e: return e\n"
        "assert g(0).args == ('a', 1) and type(g(0)) is ValueError and g(1).args == ('w',) and g(2).args == ('a',)",
    ),
    "a function with a built-in name": ("def max(a): return a", "assert max(3) == 3", "max"),
    "imports of the context": ("def f(n): return n", "assert math.isclose(f(1), 1)"),
    "globals nobody asks for": (
        "A = 10 ** 5000\nB = []\nB.append(B)\nclass C:\n    def __repr__(self): return self.x\nc = C()\nD = [0] * 10 ** 7\n"
        "def f(n): return n",
        "D = [1]\nassert f(1) in D and (A, B, c) != (1, 2, 3)",
    ),
}


@pytest.mark.parametrize("name", ASSERTS)
def test_asserts_see_what_can_travel(name):
    program, test, *function = ASSERTS[name]
    verdict = judge(program, problem("code", [test], [""], fn_name=(function or "f")[0], context="import math"))
    assert verdict.outcome == Outcome.PASS, verdict.feedback


def test_a_program_that_ends_before_its_test_is_said_to():
    assert "EOFError" in judge("def f(n): return n\ninput()", problem("code", ["assert f(1) == 1"], [""])).feedback


def test_an_end_of_iteration_in_the_program_ends_no_loop_of_the_test():
    tests = problem("code", ["assert all(map(lambda n: f(n) == 2, [1]))"], [""])
    assert judge("def f(n): raise StopIteration", tests).outcome == Outcome.FAIL


# --- when an output is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("printed", "expected", "exact", "tolerant"),
    [
        ("1 2\n3", "1 2\n3\n", True, True),
        ("1  2 \r\n3\n\n", "1 2\n3", True, True),  # blanks and line ends
        ("1 2", "1 2 3", False, False),
        ("1.50", "1.5", True, True),
        ("2", "2.0", True, True),
        ("0.3333333", "0.3333334", False, True),
        ("0.33", "0.3333333", False, False),
        ("1000000001", "1000000000", False, False),  # whole numbers are exact, however large
        ("1000000000.0000001", "1000000000", False, False),
        ("1e3", "1000", True, True),
        ("yes", "Yes", False, False),
        ("nan", "nan", True, True),
        ("nan", "1.0", False, False),
        ("inf", "1.0", False, False),
        ("10", "0010", False, False),  # texts of digits
        ("4_2", "42", False, False),
        ("\u0664\u0662", "42", False, False),
        (".5", "0.50", True, True),
        ("1e-05", "0.00001", True, True),
        ("1e9999999", "0.5", False, False),
        ("1" * 10**6, "0.5", False, False),
        ("1 " * 10**6, "1", False, False),
        ("abc-", "abc-def", False, False),  # the published judge cuts what follows the last dash
        ("", "", True, True),
    ],
)
def test_outputs(printed, expected, exact, tolerant):
    assert outputs.same_output(printed, expected, tolerant=False) == exact
    assert outputs.same_output(printed, expected, tolerant=True) == tolerant


@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False)), st.sampled_from([" ", "\n", "  \n"]))
def test_an_output_is_itself_however_it_is_spaced(numbers, gap):
    assert outputs.same_output(gap.join(map(str, numbers)), " ".join(map(str, numbers)), tolerant=False)


@given(st.integers(), st.integers(min_value=1))
def test_other_integers_are_never_the_same(number, more):
    assert not outputs.same_output(str(number + more), str(number), tolerant=True)
    assert not outputs.same_value(number + more, number)


NUMBERS = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False)
NUMBERS = NUMBERS | st.decimals(allow_nan=False) | st.fractions()
MOMENTS = st.dates() | st.timedeltas() | (st.datetimes() | st.times()).map(lambda moment: moment.replace(fold=0))
VALUES = st.recursive(
    st.none() | NUMBERS | MOMENTS | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner).flatmap(lambda items: st.sampled_from([items, tuple(items), deque(items)]))
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_values_travel_as_they_are(value):
    assert repr(wire.loads(wire.dumps(value))) == repr(value)


def test_values_of_foreign_classes_equal_nothing():
    class Odd(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

        def __add__(self, other):
            return 42

    assert wire.loads(wire.dumps(Odd(7))) == 7 and type(wire.loads(wire.dumps(Odd(7)))) is int
    foreign, other = wire.loads(wire.dumps([object(), object()]))
    assert foreign != other and not outputs.same_value(foreign, [])
    assert wire.loads(wire.dumps({1, 2})) == {1, 2} and math.isnan(wire.loads(wire.dumps(math.nan)))


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_reward_is_all_or_nothing_and_acc_the_share_passed():
    verdict = judge("print(42)", problem(inputs=["41", "1", "41", "41"], outputs=["42", "2", "42", "42"]))
    assert (verdict.outcome, verdict.reward, verdict.acc) == (Outcome.FAIL, 0.0, 0.75)
    assert verdict.record() == {
        "score": 0.0,
        "acc": 0.75,
        "pred": "['42', '42', '42', '42']",
        "incorrect_format": 0,
        "feedback": "Wrong Answer on 1 of 4 hidden tests.",
        "outcome": "fail",
        "error_in_test_cases": 0,
        "timed_out": 0,
        "tests_passed": 3,
        "tests_total": 4,
    }


def test_texts_of_a_verdict_can_be_written():
    raised = judge("raise ValueError('\\ud800')", problem(public=1))
    assert raised.feedback.encode() and raised.pred.encode() and "ValueError: ?" in raised.feedback


def test_of_a_large_output_only_the_beginning_is_kept():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = judge("print('x' * (3 << 20) + '\U0001f600')", problem(inputs=["1\n"] * 40, outputs=["2\n"] * 40))
    assert verdict.outcome == Outcome.FAIL and len(verdict.pred) == code.PRED_CHARACTERS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # 40 of 12 MB would be 480
    assert code._tests.cache_parameters()["maxsize"] <= 2  # tests of problems may have as much


def test_a_test_that_imports_numpy_runs_where_it_is_imported_already(monkeypatch):
    asked, sandbox = [], code._sandbox
    monkeypatch.setattr(code, "_sandbox", lambda numpy, lane: asked.append(numpy) or sandbox(numpy, lane))
    asserts = problem("code", ["import numpy as np\nassert np.allclose(f(1), 1)"], [""])
    assert judge("def f(n): return n", asserts).outcome == Outcome.PASS
    assert judge("print('numpy')").outcome == judge("print(1)", problem(inputs=["numpy"])).outcome == Outcome.FAIL
    assert asked == [True] * 4 + [False] * 2


def test_no_program_is_a_matter_of_format_or_of_length():
    verdict = verify("livecodebench", "print(42)", problem(), {})
    assert verdict.outcome == Outcome.FORMAT and verdict.incorrect_format and "```python" in verdict.feedback
    cut = verify("livecodebench", "```python\nprint(", problem(), {"truncated": True})
    assert cut.outcome == Outcome.TRUNCATED and "length limit" in cut.feedback
    assert cut.details["truncated_and_missing_answer"] == 1


def test_after_three_timeouts_the_rest_is_not_run():
    program = "n = int(input())\nwhile n % 2: pass\nprint(n + 1)"
    start = time.monotonic()
    verdict = judge(program, problem(inputs=["1", "2", "3", "4", "5", "6", "7"], outputs=list("2345678"), limit=0.1))
    assert verdict.outcome == Outcome.TIMEOUT and verdict.details["timed_out"] == 1
    assert verdict.acc == pytest.approx(2 / 7)  # 2 and 4; 6 was not run
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"inputs": []}', "cannot be read"),
        (problem("java"), "testtype='java'"),
        (problem(inputs=[], outputs=[]), "0 inputs and 0 outputs"),
        (problem(outputs=["1", "2"]), "1 inputs and 2 outputs"),
        (problem("functional", ["one two"], ["3"]), "'one two' is not JSON"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_of_the_data(tests, reason):
    with pytest.raises(ValueError, match=reason):
        judge("def f(n): pass", tests)


def test_running_out_of_the_time_for_all_tests_is_no_failure_of_the_program():
    with pytest.raises(code.UndecidedError, match=r"only 2 of 3 tests ran within reward\.code_timeout, all passed"):
        judge(
            "import time\nn = int(input())\ntime.sleep(.3)\nprint(n + 1)",
            problem(inputs=["1", "2", "3"], outputs=["2", "3", "4"]),
            code_timeout=0.2,
        )


def test_cpu_time_counts_and_not_the_wait_for_a_core():
    """Six busy processes on the cores; a program of 0.3 s of CPU time passes within a limit of 0.8 s."""
    context = multiprocessing.get_context("fork")
    busy = [context.Process(target=_burn, daemon=True) for _ in range(3 * cores())]
    for process in busy:
        process.start()
    try:
        program = "import time\nn = int(input())\nwhile time.process_time() < .3: pass\nprint(n + 1)"
        verdict = judge(program, problem(limit=0.8))
        assert verdict.outcome == Outcome.PASS, verdict.feedback
    finally:
        for process in busy:
            process.kill()


def _burn() -> None:
    while True:
        pass


# --- feedback --------------------------------------------------------------------------------------------------------

FEEDBACK = {
    "runtime error": ("def g(n):\n    return 1 // n\nprint(g(int(input()) - 41))", {"public": 1}),
    "hidden runtime error": ("def g(n):\n    return 1 // n\nprint(g(int(input()) - 41))", {}),
    "syntax error": ("print(", {"public": 1}),
    "time limit": ("while True: pass", {"public": 1, "limit": 0.1}),
    "wrong answers, two smallest": (
        "print('x' * int(input()))",
        {"public": 3, "inputs": ["30", "1", "20"], "outputs": ["31", "2", "21"]},
    ),
    "many lines": ("print('a\\n' * 20)", {"public": 1, "inputs": ["\n".join(map(str, range(20)))], "outputs": ["z" * 600]}),
    "hidden wrong answer": ("print(42 if int(input()) == 41 else 0)", {"public": 1, "inputs": ["41", "5"], "outputs": ["42", "6"]}),
    "wrong function": ("def f(n):\n    return [n]", {"kind": "functional", "public": 1, "inputs": [{"n": [1, 2]}], "outputs": ["[3]"]}),
    "failed assert": ("def f(n):\n    return n", {"kind": "code", "inputs": ["assert f(1) == 2"], "outputs": [""]}),
    "error under an assert": ("def f(n):\n    return n['x']", {"kind": "code", "inputs": ["assert f({}) == 2"], "outputs": [""]}),
}


def test_feedback_reads_as_the_golden_file():
    parts = []
    for name, (program, options) in FEEDBACK.items():
        verdict = judge(program, problem(**options))
        assert verdict.outcome in (Outcome.FAIL, Outcome.TIMEOUT)
        assert len(verdict.feedback) <= 2000
        parts.append(f"=== {name}\n{verdict.feedback}\n")
    assert "\n".join(parts) == (GOLDEN / "code_feedback.txt").read_text()


@pytest.mark.parametrize("kind", ["stdin", "functional", "code"])
def test_feedback_holds_no_expected_output_of_a_hidden_test_unless_asked(kind):
    secret = "s3cr3t"
    tests = {
        "stdin": problem(outputs=[secret]),
        "functional": problem("functional", ["41"], [f'"{secret}"']),
        "code": problem("code", [f"assert f(41) == '{secret}'"], [""]),
    }[kind]
    program = "print(1)" if kind == "stdin" else "def f(n): return 1"
    assert secret not in judge(program, tests).feedback
    assert secret in judge(program, tests, feedback_tests="all").feedback


# --- the sandbox as a service ----------------------------------------------------------------------------------------


def test_a_host_that_cannot_start_or_dies_is_an_error_and_not_a_verdict(monkeypatch):
    broken = Sandbox(python="/bin/false")
    with pytest.raises(SandboxError, match="did not start"):
        broken.run([Job("run", "print(1)")], Limits())
    sandbox = Sandbox()
    assert sandbox.run([Job("run", "print(1)")], Limits()).stdout == "1\n"
    sandbox._host.kill()  # started again without a word
    assert sandbox.run([Job("run", "print(2)")], Limits()).stdout == "2\n"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxError, match="a wall around a program could not be put up: OverflowError"):
        sandbox.run([Job("run", "print(3)")], Limits(memory=1 << 70))
    assert sandbox.run([Job("run", "print(4)")], Limits()).stdout == "4\n"
    assert len(os.listdir("/proc/self/fd")) == before
    sandbox.close()


@pytest.mark.slow
def test_programs_in_the_pool_of_verifiers():
    """Verdicts come back by process; a verifier killed in the middle takes its program with it."""
    pool = VerifierPool(2, timeout=5.0, options={"code_timeout": 60.0, "code_memory": 256, "feedback_tests": "public"})
    programs = [f"```python\nprint(int(input()) + {k})\n```" for k in (1, 2, 1, 3)]
    futures = [pool.submit("livecodebench", program, problem(), {"truncated": False}) for program in programs]
    assert [future.result().outcome for future in futures] == [Outcome.PASS, Outcome.FAIL, Outcome.PASS, Outcome.FAIL]
    bad = pool.submit("livecodebench", programs[0], "no tests", {}).result()
    assert bad.outcome == Outcome.ERROR and "cannot be read" in bad.details["error"]
    pool.submit("livecodebench", "```python\nimport time\ntime.sleep(99)\n```", problem(limit=50), {})
    time.sleep(1.0)
    pool.close()
    deadline = time.monotonic() + 10
    while hosts() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not hosts()


def hosts() -> list[int]:
    """The pids of sandbox hosts whose parent is gone, and of what they run."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if b"sandbox/host.py" in line and parent == 1:
                found.append(int(process.name))
    return found
