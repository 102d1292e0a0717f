"""Verdicts per second of every verifier, on 1 and 2 processes, with the median and the slowest percent.

    python -m benchmarks.verifiers [--processes 1 2] [--seconds 3] [--only math code]

Each process judges a fixed mix of right, wrong and malformed responses over and over, after a warm-up. `pool` is the
same through the trainer's pool of verifier processes, with the transport of every response there and back. Writes
benchmarks/results/verifiers.json.
"""

import argparse
import itertools
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.tools import write_results
from trainer.rewards import verify
from trainer.rewards.pool import VerifierPool

TAGGED = "<reasoning>\n" + "The mass follows from the sum of the atoms. " * 40 + "\n</reasoning>\n<answer>\n{}\n</answer>"
STEPS = "We simplify step by step and check each case against the conditions. " * 40
MATH = [  # (answer, gold): equal as text, as numbers, by algebra; wrong; no number at all
    ("18", "18"), ("1,234", "1234"), ("\\frac{1}{2}", "0.5"), ("x^2+1", "1+x^2"), ("\\sqrt{8}", "2\\sqrt{2}"), ("3", "3\\pi"),
    ("(1,2)", "(1, 2)"), ("[0,1)", "[0,1]"), ("50\\%", "50"), ("\\text{Evelyn}", "Evelyn"), ("-\\frac12", "-1/2"), ("7\\text{ cm}", "7"),
    ("2\\sqrt{3}", "2\\sqrt{2}"), ("10", "10^{-3}"), ("\\frac{3\\pi}{4}", "\\frac{3}{4}\\pi"), ("42", "43"),
]  # fmt: skip
CALL = 'Thought: I look it up.\nAction: {}\nAction Input: {{"city": "Paris", "days": {}, "more": {{"a": [1, 2]}}}}\n'
CALLS = json.dumps(
    [{"Action": name, "Action_Input": json.dumps({"city": "Paris", "days": n, "more": {"a": [1, 2]}})} for n, name in enumerate("fg")]
)
SUM = "```python\nn = int(input())\nprint(sum(int(x) for x in input().split()[:n]))\n```"


def tests(count: int) -> str:
    """Return a tests JSON of so many sums."""
    inputs = [f"{n}\n{' '.join(map(str, range(n)))}\n" for n in range(1, count + 1)]
    outputs = [f"{n * (n - 1) // 2}\n" for n in range(1, count + 1)]
    return json.dumps({"inputs": inputs, "outputs": outputs, "testtype": "stdin", "fn_name": "", "time_limit": 2})


CASES = {  # name -> data source, [(response, ground truth)]
    "multiple choice": ("sciknoweval", [(TAGGED.format(letter), "B") for letter in ("A", "B", "b", "Both")]),
    "gpqa": ("gpqa", [(STEPS + f"\\boxed{{{letter}}}", "B") for letter in ("A", "B", "\\text{B}")]),
    "tool use": ("tooluse", [(CALL.format("f", 0) + CALL.format(second, 1), CALLS) for second in ("g", "h", "g g")]),
    "math": ("math500", [(STEPS + f"So the answer is $\\boxed{{{answer}}}$.", gold) for answer, gold in MATH]),
    "code, 20 stdin tests": ("livecodebench", [(SUM, tests(20))]),
    "code, 1 stdin test": ("livecodebench", [(SUM, tests(1))]),
}


def judge_for(name: str, seconds: float, start, out) -> None:
    """Judge the cases of one verifier for so many seconds from the common start; put the seconds of each verdict."""
    source, cases = CASES[name]
    for response, truth in cases:  # imports, compiled patterns, parsed gold answers, a started sandbox
        verify(source, response, truth, {})
    start.wait()
    end, taken = time.perf_counter() + seconds, []
    for response, truth in itertools.cycle(cases):
        before = time.perf_counter()
        verify(source, response, truth, {})
        taken.append(time.perf_counter() - before)
        if time.perf_counter() > end:
            break
    out.put(np.asarray(taken, np.float32))


def measure(name: str, processes: int, seconds: float) -> dict[str, float]:
    """Return verdicts per second in all, and milliseconds of a verdict: median, 99th percentile."""
    context = multiprocessing.get_context("spawn")
    start, out = context.Barrier(processes), context.Queue()
    started = [context.Process(target=judge_for, args=(name, seconds, start, out)) for _ in range(processes)]
    for process in started:
        process.start()
    taken = [out.get(timeout=120 + seconds) for _ in started]
    for process in started:
        process.join()
    p50, p99 = np.quantile(np.concatenate(taken), [0.5, 0.99]) * 1e3
    return {"per_second": float(sum(len(part) / part.sum() for part in taken)), "p50_ms": float(p50), "p99_ms": float(p99)}


def measure_pool(name: str, processes: int, verdicts: int) -> float:
    """Return verdicts per second through the trainer's pool."""
    source, cases = CASES[name]
    pool = VerifierPool(processes)
    try:
        for future in [pool.submit(source, *cases[0], {}) for _ in range(4 * processes)]:
            future.result()
        start = time.perf_counter()
        for future in [pool.submit(source, *case, {}) for case, _ in zip(itertools.cycle(cases), range(verdicts), strict=False)]:
            future.result()
        return verdicts / (time.perf_counter() - start)
    finally:
        pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of the names of verifiers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table = Table("verifier", "processes", "verdicts/s", "p50 ms", "p99 ms", "pool verdicts/s")
    rows = []
    for name in CASES:
        if options.only and not name.startswith(tuple(options.only)):
            continue
        for processes in options.processes:
            row = {"verifier": name, "processes": processes, **measure(name, processes, options.seconds)}
            row["pool_per_second"] = measure_pool(name, processes, max(20, min(2000, int(row["per_second"]))))
            rows.append(row)
            numbers = (f"{row['per_second']:,.0f}", f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}", f"{row['pool_per_second']:,.0f}")
            table.add_row(name, str(processes), *numbers)
    console = Console()
    console.print(table)
    console.print(f"written: {write_results('verifiers', {'seconds': options.seconds, 'rows': rows}, options.out)}")


if __name__ == "__main__":
    main()
