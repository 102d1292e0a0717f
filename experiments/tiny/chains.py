"""Chains: k operations mod 10 from left to right, answered step by step by a noisy annotator (design 10).

    3+5*2-7  ->  3+5=8 / 8*2=6 / 6-7=9 / Answer:9        (subtraction mod 10 as well)

The annotator has fixed misconceptions: each table entry (operation, a, b) slips with a probability of its own, mostly
to one fixed wrong digit, and the annotator goes on from what it wrote. A model warmed up on its solutions passes
about 40 % of its attempts, and nearly every group is mixed. The errors are built in, and the README says so.
"""

from dataclasses import dataclass

import numpy as np

DATA_SOURCE = "tiny_chains"
OPERATIONS = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}


@dataclass(frozen=True)
class Annotator:
    """Slip probability and favourite wrong digit of every table entry."""

    slip: dict[tuple[str, int, int], float]
    wrong: dict[tuple[str, int, int], int]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Annotator":
        """Half of the entries slip with probability .05, 35 % with .30, 15 % with .60."""
        entries = [(op, a, b) for op in OPERATIONS for a in range(10) for b in range(10)]
        slip = rng.choice([0.05, 0.30, 0.60], p=[0.50, 0.35, 0.15], size=len(entries))
        wrong = {e: int((OPERATIONS[e[0]](e[1], e[2]) + rng.integers(1, 10)) % 10) for e in entries}
        return cls(dict(zip(entries, slip.tolist(), strict=True)), wrong)

    def solve(self, problem: str, rng: np.random.Generator) -> str:
        """Return a solution with this annotator's slips."""

        return _write(problem, lambda op, a, b: self.step(op, a, b, rng))

    def step(self, op: str, a: int, b: int, rng: np.random.Generator) -> int:
        """Return what this annotator takes `a op b` to be this time."""
        right = OPERATIONS[op](a, b)
        if rng.random() >= self.slip[op, a, b]:
            return right
        return self.wrong[op, a, b] if rng.random() < 0.7 else int((right + rng.integers(1, 10)) % 10)

    def follow(self, problem: str, shown: str, rng: np.random.Generator) -> tuple[str, int | None]:
        """Return a solution that takes over what a shown solution says of the very same operation, and is this
        annotator's own elsewhere; and the step at which, in half of the cases, a slip was forced on it (else None).

        After a forced slip the shown lines no longer apply: so a model learns to use what it is shown where it
        fits, instead of copying it blindly. The forced slip itself is not trained on.
        """
        known = {line[:4]: int(line[4]) for line in shown.split("\n")[:-1]}
        slip_at = int(rng.integers(0, len(problem) - 1))  # twice as many values as steps

        steps = iter(range(len(problem) // 2))

        def step(op: str, a: int, b: int) -> int:
            if next(steps) == slip_at:
                return int((OPERATIONS[op](a, b) + rng.integers(1, 10)) % 10)
            line = f"{a}{op}{b}="
            return known[line] if line in known else self.step(op, a, b, rng)

        return _write(problem, step), slip_at if slip_at < len(problem) // 2 else None


def draw_problem(rng: np.random.Generator, k: int) -> str:
    """Return a chain of k operations."""
    digits, ops = rng.integers(0, 10, k + 1), rng.choice(list(OPERATIONS), k)
    return str(digits[0]) + "".join(f"{op}{digit}" for op, digit in zip(ops, digits[1:], strict=True))


def solve(problem: str) -> str:
    """Return the right solution."""
    return _write(problem, lambda op, a, b: OPERATIONS[op](a, b))


def answer(solution: str) -> str:
    """Return the digit a solution ends with."""
    return solution[-1]


def _write(problem: str, step) -> str:
    value, lines = int(problem[0]), []
    for op, digit in zip(problem[1::2], problem[2::2], strict=True):
        result = step(op, value, int(digit))
        lines.append(f"{value}{op}{digit}={result}")
        value = result
    return "\n".join([*lines, f"Answer:{value}"])
