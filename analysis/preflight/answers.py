r"""The final answer of a response, as its verifier reads it, taken out: `\boxed{}`, `<answer></answer>`, `the answer is (...)`.

Every span in the verifier's format goes, not only the last, which it reads: a peer that says its answer twice gives it away
twice. An answer told in other words stays. The tests hold each pattern against the verifier itself: it reads no answer in
what is left.
"""

import re
from collections.abc import Callable

from trainer import rewards
from trainer.config.schema import Config

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_TAGGED = re.compile(r"(<answer>)[^<]*(</answer>)")
_LETTER = re.compile(
    r"(nswer[*_]*+\s*+(?:is\b\s*+:?|:)[\s*_$`\"'“]*+(?:option\s++)?(?:\\(?:boxed|text|textbf|mathrm|mathbf)\s*+\{\s*+)*+)"
    r"(?:([(\[][\s*_]*+)[A-J]|(?-i:[A-J])(?![A-Za-z]))",
    re.IGNORECASE,
)
_TINY = re.compile(r"(Answer:)[0-9A-D]+")


def _without_boxes(text: str) -> str:
    """Empty every closed box, and all that follows a box never closed."""
    out, at = [], 0
    for box in _BOX.finditer(text):
        if box.start() < at:  # within the box before
            continue
        depth, end = 1, len(text)
        for brace in _BRACE.finditer(text, box.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                end = brace.start()
                break
        out += [text[at : box.end()]]
        at = end
    return "".join(out) + text[at:]


MASKS: dict[str, Callable[[str], str]] = {  # entry of `trainer.rewards.VERIFIERS` -> the text without its answers
    "multiple_choice:tagged": lambda text: _TAGGED.sub(r"\1\2", text),
    "multiple_choice:boxed": _without_boxes,
    # dots, or the next word would be read: "Answer: B C is wrong"
    "multiple_choice:phrase": lambda text: _LETTER.sub(r"\1\2...", text),
    "math:verify": _without_boxes,
    "tiny:verify": lambda text: _TINY.sub(r"\1", text),
}


def mask_of(data_source: str, config: Config) -> Callable[[str], str] | None:
    """Return what takes the final answer out of a response of a source; None where there is no such thing: programs, tool
    calls, and what a reward function of the user's reads."""
    if config.custom_reward_function.path:
        return None
    return MASKS.get(rewards.entry_of(data_source))
