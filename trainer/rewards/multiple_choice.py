r"""Multiple choice: one letter, each source in the format its prompt asks for.

`tagged` (sciknoweval) reads `<answer>B</answer>`, `boxed` (gpqa) reads `\boxed{B}`, `phrase` (mmlu_pro) reads "the answer
is (B)". In all three the last well-formed answer wins, and its case and the blanks around it do not matter. A response
without one is wrong in format, also when it is a bare letter: the prompt asks for the format, and a peer without it
would teach to leave it out. A draft within <think> is not read.
"""

import re
from collections.abc import Mapping
from typing import Any

from trainer.rewards.thinking import after_thinking
from trainer.types import Outcome, Verdict

OPTIONS = "ABCDEFGHIJ"
_TAGGED = re.compile(r"<answer>\s*([A-Za-z])\s*</answer>")
# \boxed{B}, \boxed{(b)}, \boxed{B)}, \boxed{B.}, \boxed{$B$}, \boxed{{B}}, \boxed{\text{B}}, \boxed{\textbf{(B)}}, \boxed{\rm B}.
# Possessive quantifiers (*+), here and below: neighbouring runs of blanks would otherwise be divided between them in
# quadratically many ways.
_LETTER = r"\s*+\$?[(\[]?\s*+([A-Za-z])\s*+[)\]]?\s*+\.?\$?\s*+"
_STYLE = r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt)|mbox)"
_BOXED = re.compile(
    rf"\\(?:boxed|fbox)\s*+\{{(?:{_LETTER}|\s*+\\(?:rm|bf|it|sf)\b{_LETTER}|\s*+\$?(?:{_STYLE})?\s*+\{{{_LETTER}\}}\s*+\.?\$?\s*+)\}}"
)
# After the word: "is", ":" or both, bold marks, quotes, "option"; then a letter in brackets, or a capital that ends its clause,
# so that in "the answer is a matter of ..." and "the answer is I think (B)" the articles and pronouns are no letters.
_PHRASE = re.compile(
    r"nswer[*_]*+\s*+(?:is\b\s*+:?|:)[\s*_$`\"'“]*+(?:option\s++)?(?:\\(?:boxed|text|textbf|mathrm|mathbf)\s*+\{\s*+)*+"
    r"(?:\([\s*_]*+([A-J])[\s*_]*+\)|\[\s*+([A-J])\s*+\]|((?-i:[A-J]))(?=[*_`\"'”]*+[^\S\n]*+(?:[.,;:!)}$\n]|\Z)))",
    re.IGNORECASE,
)
_BEFORE_ANSWER = re.compile(r"(?<![A-Za-z])in\s+a\Z", re.IGNORECASE)  # "In answer: A student asked ..." answers nothing

TAGGED_FEEDBACK = "Your answer was not in the required format: put the letter of one option between <answer> and </answer>."
BOXED_FEEDBACK = "Your answer was not in the required format: put the letter of one option, and nothing else, inside \\boxed{}."
PHRASE_FEEDBACK = 'Your answer was not in the required format: end with "the answer is (X)", X being the letter of one option.'


def tagged(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Compare the last answered letter with the gold letter. Feedback names the format, never the gold letter."""
    answers = _TAGGED.findall(after_thinking(response))
    return _verdict(answers[-1] if answers else "", ground_truth, TAGGED_FEEDBACK)


def boxed(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    r"""As `tagged`, for the letter in the last \boxed{} that holds one; \text{B}, (B) and "B)" are read as B."""
    answers = _BOXED.findall(after_thinking(response))
    return _verdict("".join(answers[-1]) if answers else "", ground_truth, BOXED_FEEDBACK)


def phrase(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """As `tagged`, for the last "the answer is (X)" or "Answer: X", X from A to J; bold marks and "option" may stand before X."""
    response = after_thinking(response)
    # Backwards from the last "answer": a case-blind search over the whole response would take ten times as long.
    ends = {word: response.rfind(word) for word in ("nswer", "NSWER")}
    while (end := max(ends.values())) >= 0:
        answer = _PHRASE.match(response, end)
        if answer and not _BEFORE_ANSWER.search(response[max(0, end - 8) : end]):
            return _verdict(answer[1] or answer[2] or answer[3], ground_truth, PHRASE_FEEDBACK)
        ends = {word: response.rfind(word, 0, end) if place == end else place for word, place in ends.items()}
    return _verdict("", ground_truth, PHRASE_FEEDBACK)


def check_gold(ground_truth: str) -> None:
    """Raise ValueError for a gold answer that is no letter from A to J: no question here has more than ten options."""
    _gold(ground_truth)


def _gold(ground_truth: str) -> str:
    gold = ground_truth.strip().upper()
    if len(gold) != 1 or gold not in OPTIONS:
        raise ValueError(f"ground_truth={ground_truth!r}: multiple choice wants the letter of one option, A to J; mend the row or drop it.")
    return gold


def _verdict(letter: str, ground_truth: str, format_feedback: str) -> Verdict:
    gold = _gold(ground_truth)
    if not letter:
        return Verdict(Outcome.FORMAT, 0.0, 0.0, incorrect_format=True, feedback=format_feedback)
    letter = letter.upper()
    right = letter == gold
    return Verdict(Outcome.PASS if right else Outcome.FAIL, float(right), float(right), pred=letter)
