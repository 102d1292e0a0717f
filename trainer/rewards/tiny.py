"""The tasks of the embedded default: the one-character answer after the last `Answer:`."""

import re
from collections.abc import Mapping
from typing import Any

from trainer.types import Outcome, Verdict

_ANSWER = re.compile(r"Answer:([0-9A-D])")


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Compare the last answer with the gold digit or letter."""
    answers = _ANSWER.findall(response)
    if not answers:
        return Verdict(Outcome.FORMAT, 0.0, 0.0, incorrect_format=True)
    right = answers[-1] == ground_truth
    return Verdict(Outcome.PASS if right else Outcome.FAIL, float(right), float(right), pred=answers[-1])
