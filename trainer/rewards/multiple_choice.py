"""Multiple choice (sciknoweval): the letter inside the last well-formed `<answer>` block.

Blanks around the letter and its case do not matter. A response without a well-formed block is wrong in format, also
when it is a bare letter: the prompt asks for the block, and a peer without it would teach to leave it out.
"""

import re
from collections.abc import Mapping
from typing import Any

from trainer.types import Outcome, Verdict

_ANSWER = re.compile(r"<answer>\s*([A-Za-z])\s*</answer>")
FORMAT_FEEDBACK = "Your answer was not in the required format: put the letter of one option between <answer> and </answer>."


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Compare the last answered letter with the gold letter. Feedback names the format, never the gold letter."""
    answers = _ANSWER.findall(response)
    if not answers:
        return Verdict(Outcome.FORMAT, 0.0, 0.0, incorrect_format=True, feedback=FORMAT_FEEDBACK)
    letter = answers[-1].upper()
    right = letter == ground_truth.strip().upper()
    return Verdict(Outcome.PASS if right else Outcome.FAIL, float(right), float(right), pred=letter)
