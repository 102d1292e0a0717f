"""Misconceptions: a task on which failures can matter, since many groups fail as a whole (design 10).

256 questions, each one token, four letters; an answer is a way of putting it and the letter, twice:

    recall:B / Answer:B

The base model knows 90 questions, is unsure of 76, and holds a wrong letter with probability .85-.95 on 90. Questions
are trained and evaluated on the same set (test-time training; no claim of generalisation). The warm-up's prompts
with peers use made-up truths, so no real answer leaks: copy a success, avoid a failed letter. Where another letter was
forced on it (untrained), the model goes on from that: a base that has never seen such a beginning is at a loss as a
teacher of rollouts that have one, and ends them there.
"""

from dataclasses import dataclass

import numpy as np

DATA_SOURCE = "tiny_misconceptions"
QUESTIONS = [f"q{i}" for i in range(256)]
LETTERS = "ABCD"
WAYS = ("think", "recall", "guess")
KINDS = ("known", "unsure", "misconception")


@dataclass(frozen=True)
class Beliefs:
    """The true letter of every question, what kind it is, and the distribution over letters the base model starts with."""

    truth: dict[str, str]
    kind: dict[str, str]
    belief: dict[str, np.ndarray]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Beliefs":
        """90 questions known with .85-.95, 76 with .25-.5 on the truth, 90 with .85-.95 on one wrong letter."""
        kinds = rng.permutation([KINDS[0]] * 90 + [KINDS[1]] * 76 + [KINDS[2]] * 90)
        truth, kind, belief = {}, {}, {}
        for question, k in zip(QUESTIONS, kinds, strict=True):
            right = int(rng.integers(4))
            favourite = right if k != KINDS[2] else int((right + rng.integers(1, 4)) % 4)
            strength = rng.uniform(0.25, 0.5) if k == KINDS[1] else rng.uniform(0.85, 0.95)
            p = rng.dirichlet(np.ones(3)) * (1 - strength)
            truth[question], kind[question] = LETTERS[right], str(k)
            belief[question] = np.insert(p, favourite, strength)
        return cls(truth, kind, belief)


def write(letter: str, way: str) -> str:
    """Return a response."""
    return f"{way}:{letter}\nAnswer:{letter}"


def answer_as(p: np.ndarray, rng: np.random.Generator) -> str:
    """Return a response whose letter is drawn from p."""
    return write(LETTERS[rng.choice(4, p=p / p.sum())], str(rng.choice(WAYS)))
