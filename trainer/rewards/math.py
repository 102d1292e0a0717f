r"""Mathematics (math*, gsm8k, amc23, aime*, hmmt*, deepmath, dapo): the answer in the last `\boxed{}` against the gold answer.

Nothing else is read: no number from the running text, no "#### 5", no draft within <think>. Without a box, or with an open or
empty last one, the response is wrong in format. Answers are equal when their spelling is, else part by part
(`latex.structure`), and parts by exact numbers, words, or computer algebra (`symbolic`, which is imported only when it is
needed). What is tolerated:

- Numbers are exact: 0.5 is 1/2 and 3/6, 1,234 is 1234.0, 1\frac{1}{2} is 3/2, 0.333 is not 1/3, 2^{100}-1 is not 2^{100}. An
  irrational number is met by a decimal of 12 digits or more.
- A percent sign on one side only may be a unit or a hundredth: 50% meets 50 and 0.5. Degree marks and currency signs do not count.
- Units after a number may be left out; two different units of the table in `latex` differ (5 cm is not 5 m, nor 5 cm^2).
- "x = 5", "5 = x" and "x \in A" meet 5 and A; two different names do not meet. "x = 1, y = 2" meets (1, 2).
- Order counts in tuples and between rows; not in sets, lists ("1, 2", "1 and 2", "\pm 2"), unions. Open and closed intervals differ.
- Words (\text{Evelyn}, "no solution") are compared without regard to case and blanks; "(B)" is B.
- A base may be left out: 1010 meets 1010_2; 10 does not.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

from trainer.rewards import latex
from trainer.rewards.boxed import last_boxed
from trainer.rewards.thinking import after_thinking
from trainer.types import Outcome, Verdict

FORMAT_FEEDBACK = "Your answer was not in the required format: put the final answer, and nothing else, inside \\boxed{}."

_MAX_PARTS = 64
_MAX_UNKNOWN = 8  # parts of a set in other spellings: each may be compared with each by computer algebra
_MAX_SHOWN = 1000
_NAME = r"(?:(?!\\pi(?![a-zA-Z]))\\?[a-zA-Z]+(?:_(?:\w|\{\w+\}))?|\\text\{[^{}]*\})'?"
_NAMED = re.compile(
    rf"\s*({_NAME}(?:\(\s*\w(?:\s*,\s*\w)*\s*\))?|\(\s*{_NAME}(?:\s*,\s*{_NAME})+\s*\))\s*(?:=|\\in(?![a-z])|\\approx(?![a-z]))(.*)",
    re.DOTALL,
)
_ONLY_NAME = re.compile(_NAME)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|lt|gt|in|ne)(?![a-zA-Z])")
_SETS = re.compile(rf"{_RELATION.pattern}|\\(?:setminus|backslash|cup|cap|mathbb)(?![a-zA-Z])")
_AND = re.compile(r"(?<![a-zA-Z])and(?![a-zA-Z])")
_INTERVALS = ("()", "(]", "[)", "[]", "union")
_DECIMAL = re.compile(r"\.\d")
_BASE = re.compile(r"\(?([0-9A-Fa-f.]+)\)?_(?:(\d)|\{(?:\\text\{)?(\w+)\}?\})")


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Compare the boxed answer with the gold answer. Feedback names the format, never the gold answer.

    Raises:
        ValueError: for a gold answer that is empty or cannot be read.
    """
    gold = _gold(ground_truth)
    boxed = last_boxed(after_thinking(response))
    answer = latex.canonical(boxed) if boxed else ""
    if not answer:
        return Verdict(Outcome.FORMAT, 0.0, 0.0, incorrect_format=True, feedback=FORMAT_FEEDBACK)
    right = same_answer(gold, answer)
    return Verdict(Outcome.PASS if right else Outcome.FAIL, float(right), float(right), pred=_vote(answer))


def check_gold(ground_truth: str) -> None:
    """Raise ValueError for a gold answer that is empty, or that no other spelling than its own could be compared with."""
    _check(_gold(ground_truth))


def _gold(ground_truth: str) -> str:
    gold = latex.canonical(last_boxed(ground_truth) or ground_truth)
    if not gold:
        raise ValueError(f"ground_truth={ground_truth!r}: there is no gold answer to compare with; mend the row or drop it.")
    return gold


def _check(gold: str) -> None:
    if latex.number(latex.measure(gold).body) is not None or latex.is_words(gold):
        return
    name, value = _unnamed(gold)
    kind, parts = _plain_structure(gold)
    if name:
        _check(value)
    elif kind != "atom":
        for part in chain(*parts) if kind.startswith("matrix") else parts:
            _check(part)
    else:
        body = latex.measure(parts[0]).body
        spelled = latex.key(body)
        if not (latex.option(spelled) or _BASE.fullmatch(spelled) or ":" in spelled):
            from trainer.rewards import symbolic  # as in _same_expression

            symbolic.read_gold(body)


def _vote(answer: str) -> str:
    """Return one text for answers that are plainly the same, for votes: the number in lowest terms, else the spelling."""
    value = latex.number(latex.measure(answer).body)
    return str(value) if value is not None else latex.key(answer)[:_MAX_SHOWN]


def same_answer(gold: str, answer: str) -> bool:
    """Compare two canonical answers. Raises ValueError for a gold answer that cannot be read."""
    if latex.key(gold) == latex.key(answer):
        return True
    numbers = latex.number(gold), latex.number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if numbers[0] is not None:
        answer = latex.counted(answer)
    if latex.is_words(gold) and latex.words(gold) == latex.words(answer):
        return True
    (gold_name, gold_value), (name, value) = _unnamed(gold), _unnamed(answer)
    if gold_name and name:
        return gold_name == name and same_answer(gold_value, value)
    # one side names what it found, "x = 5", or the answer ends a chain, "2 + 3 = 5"
    value = value if name else _chain_end(answer)
    if "=" in gold_value or "=" in value:  # but an equation is compared with a whole equation
        gold_value, value = gold, answer
    if (gold_value, value) != (gold, answer):
        return same_answer(gold_value, value)
    return _same_structure(gold, answer)


def _same_structure(gold: str, answer: str) -> bool:
    gold_kind, gold_parts = _plain_structure(gold)
    kind, parts = _plain_structure(answer)
    if gold_kind != kind:
        if (matched := _same_across_kinds((gold_kind, gold_parts, gold), (kind, parts, answer))) is not None:
            return matched
        # a set written in two ways, such as x \ge 2 and [2, \infty)
        sets = (kind in _INTERVALS or _SETS.search(text) for kind, text in ((gold_kind, gold), (kind, answer)))
        return (
            all(sets)
            and not latex.is_words(gold + " " + answer)
            and _same_expression(gold, answer, sets=True, decimal=_DECIMAL.search(f"{gold} {answer}") is not None)
        )
    if kind == "atom":
        return _same_atom(gold_parts[0], parts[0])
    if kind.startswith("matrix"):
        return list(map(len, gold_parts)) == list(map(len, parts)) and _same_in_order([*chain(*gold_parts)], [*chain(*parts)])
    if kind == "union" or (kind == "list" and not _order_counts(gold_parts, parts)):
        return _same_in_any_order(gold_parts, parts)
    return _same_in_order(gold_parts, parts)


def _same_across_kinds(gold: tuple[str, list, str], answer: tuple[str, list, str]) -> bool | None:
    r"""Compare (1, 2) with "x = 1, y = 2", and a union of intervals with "x < 2 or x > 3"; None for other kinds."""
    kinds = (gold[0], answer[0])
    if kinds in (("()", "list"), ("list", "()")):
        named = [_unnamed(part) for part in (gold if gold[0] == "list" else answer)[1]]
        names = [name for name, _ in named]
        if "" in names or len(set(names)) < len(names):
            return None
        values = [value for _, value in sorted(named)]
        return _same_in_order(values, answer[1]) if gold[0] == "list" else _same_in_order(gold[1], values)
    if kinds in (("union", "list"), ("list", "union")):
        _, parts, text = gold if gold[0] == "list" else answer
        either = all(_RELATION.search(part) for part in parts) and len(latex.split(text, ",;")) == 1 and not _AND.search(text)
        return _same_in_any_order(gold[1], answer[1]) if either else None
    return None


def _plain_structure(text: str) -> tuple[str, list]:
    """As `latex.structure`; a set is compared as a list, and a set of one element as that element."""
    kind, parts = latex.structure(text)
    if kind != "set":
        return kind, parts
    return ("atom" if len(parts) == 1 else "list"), parts


def _unnamed(text: str) -> tuple[str, str]:
    r"""Part "x = 5", "f(x) = ..." or "x \in A" into name and value; name "" where there is none."""
    left, _, right = text.partition("=")
    if right and latex.number(left.strip()) is not None and _ONLY_NAME.fullmatch(right.strip()):
        return latex.key(right), left.strip()  # 5 = x
    named = _NAMED.fullmatch(text)
    if not named or len(latex.listing(text)) > 1 or ("=" in named[2] and "," in text):
        return "", text
    value = named[2].rpartition("=")[2] if "=" in named[2] and not _RELATION.search(named[2]) else named[2]
    return (latex.key(named[1]), value.strip()) if value.strip() else ("", text)


def _chain_end(text: str) -> str:
    """Return what follows the last "=" of a chain whose left side could not be an equation to solve: "2 + 3 = 5", "x + y = 5"."""
    left, _, right = text.rpartition("=")
    if not right.strip() or not left.strip() or _RELATION.search(text) or len(latex.listing(text)) > 1:
        return text
    before = left.rpartition("=")[2].strip()
    numbers = latex.number(before), latex.number(right.strip())
    if before == r"\pi" or (None not in numbers and numbers[0] != numbers[1]):
        return text  # "3 = 5" and "\pi = 5" say nothing
    bare = re.sub(r"\\[a-zA-Z]+|_\w|_\{\w+\}", "", left)
    return text if re.search(r"[a-zA-Z]", bare) and re.search(r"\d", bare) else right.strip()


def _order_counts(gold_parts: Sequence[str], parts: Sequence[str]) -> bool:
    """ "x = 2, y = 3" against "2, 3": names on one side only, and more than one of them."""
    names = [{_unnamed(part)[0] for part in side} for side in (gold_parts, parts)]
    return names[0] != names[1] and max(map(len, names)) > 1


def _same_in_order(gold_parts: Sequence[str], parts: Sequence[str]) -> bool:
    return len(gold_parts) == len(parts) <= _MAX_PARTS and all(map(same_answer, gold_parts, parts))


def _same_in_any_order(gold_parts: Sequence[str], parts: Sequence[str]) -> bool:
    spelled = {latex.key(part) for part in parts}
    unknown = sum(latex.number(part) is None and latex.key(part) not in spelled for part in gold_parts)
    if len(gold_parts) != len(parts) or len(parts) > _MAX_PARTS or unknown > _MAX_UNKNOWN:
        return False
    left = list(parts)
    for gold in sorted(gold_parts, key=lambda part: (latex.number(part) is None, latex.key(part) not in spelled)):  # the quick ones first
        found = next((index for index, part in enumerate(left) if latex.key(gold) == latex.key(part)), None)
        if found is None:
            found = next((index for index, part in enumerate(left) if same_answer(gold, part)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_atom(gold: str, answer: str) -> bool:
    wanted, given = latex.measure(gold), latex.measure(answer)
    if wanted.unit and given.unit and wanted.unit != given.unit:
        return False
    spelled, answered = latex.key(wanted.body), latex.key(given.body)
    if None not in (numbers := (latex.number(wanted.body), latex.number(given.body))):
        return _same_percentage(numbers, wanted.percent, given.percent)
    if (bases := _same_in_base(spelled, answered)) is not None:
        return bases
    if (latex.option(spelled) or spelled) == (latex.option(answered) or answered):
        return True
    if latex.is_words(gold + " " + answer):
        return latex.words(gold) == latex.words(answer)
    return ":" not in spelled + answered and _same_formula((wanted.body, given.body), numbers)


def _same_formula(bodies: tuple[str, str], numbers: tuple[Fraction | None, Fraction | None]) -> bool:
    # 1,234 and 0.\overline{3} mean something else, or nothing, to a parser of formulas
    plain = (body if value is None else str(value) for body, value in zip(bodies, numbers, strict=True))
    try:
        return _same_expression(*plain, decimal=_DECIMAL.search(" ".join(bodies)) is not None)
    except ValueError:  # a gold answer that no parser reads, such as A \cap B: it is no number
        if numbers[1] is None or latex.depth(bodies[0]) is None:
            raise
        return False


def _same_percentage(numbers: tuple[Fraction, Fraction], gold_percent: bool, percent: bool) -> bool:
    """Compare two numbers; a percent sign that one side alone bears may be a unit or a hundredth."""
    if gold_percent == percent or numbers[0] == numbers[1]:
        return numbers[0] == numbers[1]
    return numbers[0] * (100 if percent else 1) == numbers[1] * (100 if gold_percent else 1)


def _same_in_base(gold: str, answer: str) -> bool | None:
    """Compare digits where a side names a base, None where none does. Two bases must be the same, and their digits."""
    bases = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if not any(bases):
        return None
    digits = [base[1] if base else side for base, side in zip(bases, (gold, answer), strict=True)]
    return digits[0] == digits[1] and (gold == answer or not all(bases))


def _same_expression(gold: str, answer: str, *, sets: bool = False, decimal: bool = False) -> bool:
    if ("=" in gold) != ("=" in answer):
        return False  # "2x = 6" is not 6; math-verify would compare the right side
    from trainer.rewards import symbolic  # a third of a second and 60 MB: only workers that meet such an answer pay

    return symbolic.equal_sets(gold, answer, decimal=decimal) if sets else symbolic.equal(gold, answer, decimal=decimal)
