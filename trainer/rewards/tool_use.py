"""Tool use: the calls of a response, in the ReAct format of the prompt, against the gold calls.

A call is a line `Action: NAME` and after it `Action Input: {JSON object}`. Read with tolerance: bold marks, a list mark or
heading before the label, a code fence around the JSON, text after it (an `Observation`, which is the environment's to
write, is passed over, and calls after it count), a draft inside `<think>` (passed over). Not read with tolerance: a
missing or broken Action Input is no call with `{}`, and neither is a Python literal, an array, JSON with rubbish stuck to it
or with a key twice, or one of two inputs. `Action: None` after the last call is a call too, one without input.

Strict, the default: as many calls as the gold has, in its order, each with the gold's name and arguments. Arguments are
equal as JSON values: strings exactly, 1 and 1.0 are one number, true is not 1, an object's keys have no order, an array's
items have. Lenient (`extra_info["tool_calls"] == "lenient"`): calls in any order; names without regard to case and to a mark in
square brackets before them ("[Optional]update"); strings without regard to case and blanks; a number equals a string of it
("3", "3.0", not "007" or "1e3"); an argument that is empty ("" or null) equals one left out.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from trainer.rewards.thinking import after_thinking
from trainer.types import Outcome, Verdict

_LABEL = re.compile(r"Action( Input)?[*_]*+[^\S\n]*+:[*_]*+")  # begins with a literal: searched at memchr's speed
_BEFORE = re.compile(r"\s*+(?:[-#>]++|\d++[.)])?\s*+[*_]*+")  # what may stand before a label on its line
_FENCE = re.compile(r"\s*+(?:`{1,3}(?:json\b)?\s*+)?")
_OPTIONAL = re.compile(r"^\s*\[[^\]]*\]\s*")
_AGAIN = re.compile(r"[\s`]*+\{")
_PLAIN_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_SHOWN = 80  # characters of the response's own names that feedback repeats
_SHOWN_CALLS = 5

FORMAT_FEEDBACK = (
    "Your response holds no tool call in the required format: a line `Action: ` with the tool's name, then a line "
    "`Action Input: ` with its arguments as a JSON object."
)


@dataclass(frozen=True)
class Call:
    """One call. `arguments` is None where the response wrote none, `broken` where what it wrote is not a JSON object."""

    name: str
    arguments: Mapping[str, Any] | None
    broken: bool = False


def verify(response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    """Compare the calls of the response with the gold calls, a JSON list of {"Action", "Action_Input": JSON string}.

    Reward and acc are 0 or 1; `details` counts the calls and those matched. Feedback says what is wrong in words of
    the response alone: it repeats no gold name, argument or value that the response does not hold itself.

    Raises:
        ValueError: for gold calls that cannot be read.
    """
    gold = gold_calls(ground_truth)
    calls = read_calls(response)
    lenient = extra_info.get("tool_calls") == "lenient"
    pairs = _pair(calls, gold, _equal_leniently) if lenient else list(zip(calls, gold, strict=False))
    equal = _equal_leniently if lenient else _equal
    matched = sum(equal(call, wanted) for call, wanted in pairs)
    right = matched == len(calls) == len(gold)
    well_formed = bool(calls) and all(call.arguments is not None for call in calls)
    return Verdict(
        Outcome.PASS if right else Outcome.FAIL if well_formed else Outcome.FORMAT,
        float(right),
        float(right),
        pred=json.dumps([[call.name, call.arguments] for call in calls], sort_keys=True, ensure_ascii=False) if calls else "",
        feedback="" if right else _feedback(calls, gold, pairs, lenient),
        incorrect_format=not well_formed,
        details={"calls": len(calls), "calls_expected": len(gold), "calls_matched": matched},
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key comes twice in an object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def check_gold(ground_truth: str) -> None:
    """Raise ValueError for gold calls that cannot be read."""
    gold_calls(ground_truth)


@functools.lru_cache(maxsize=8192)
def gold_calls(ground_truth: str) -> tuple[Call, ...]:
    """Parse the gold calls; raise ValueError naming what cannot be read."""
    try:
        calls = tuple(_gold_call(item) for item in json.loads(ground_truth))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"ground_truth={ground_truth[:200]!r}: no JSON list of {{'Action', 'Action_Input'}} ({type(error).__name__}: {error}); "
            "mend the row or drop it."
        ) from None
    if not calls:
        raise ValueError(f"ground_truth={ground_truth!r}: the list of gold calls is empty; mend the row or drop it.")
    return calls


def _gold_call(item: Mapping[str, Any]) -> Call:
    arguments = item["Action_Input"]
    arguments = _DECODER.decode(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        raise ValueError(f"Action_Input of {item['Action']!r} is not a JSON object")
    return Call(item["Action"].strip(), arguments)


def read_calls(response: str) -> list[Call]:
    """Return the calls of a response in its order, those with missing or broken arguments included."""
    response = after_thinking(response)
    labels = list(_LABEL.finditer(response))
    calls: list[Call] = []
    read = 0  # everything before has been read: an "Action:" inside a JSON string is not a call
    for label, after in zip(labels, [*labels[1:], None], strict=False):
        if label.start() < read:
            continue
        if label[1]:  # of no call: a second input of the last one
            if calls and _AGAIN.match(response, label.end()):
                calls[-1] = Call(calls[-1].name, None, broken=True)
            continue
        line_end = response.find("\n", label.end())
        line_end = len(response) if line_end < 0 else line_end
        has_input = after is not None and after[1] is not None
        if has_input and after.start() < line_end:  # "Action: f Action Input: {}" on one line
            line_end = after.start()
        elif not _BEFORE.fullmatch(response, response.rfind("\n", 0, label.start()) + 1, label.start()):
            continue  # "the best Action: none" in the middle of a sentence
        name = response[label.end() : line_end].strip(" \t\r*_`\"'")
        call, read = _with_arguments(name, response, after.end()) if has_input else (Call(name, None), line_end)
        calls.append(call)
    return calls


def _with_arguments(name: str, response: str, start: int) -> tuple[Call, int]:
    """Read the JSON object at `start`; return the call and where the reading ended."""
    fence = _FENCE.match(response, start)
    broken = Call(name, None, broken=True)
    try:
        arguments, end = _DECODER.raw_decode(response, fence.end() if fence else start)
    except (ValueError, RecursionError):  # RecursionError: thousands of open brackets
        return broken, start
    if not isinstance(arguments, dict) or response[end : end + 1] in tuple("}[],:") or _AGAIN.match(response, end):
        return broken, end
    return Call(name, arguments), end


def _equal(call: Call, gold: Call) -> bool:
    return call.name == gold.name and call.arguments is not None and _same(call.arguments, gold.arguments)


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values. Python's own also has True == 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _equal_leniently(call: Call, gold: Call) -> bool:
    if call.arguments is None or _plain_name(call.name) != _plain_name(gold.name):
        return False
    return _plain(call.arguments) == _plain(gold.arguments)


def _plain_name(name: str) -> str:
    return _OPTIONAL.sub("", name).casefold()


def _plain(value: Any) -> Any:
    """Reduce a JSON value to what lenient equality compares: numbers and words as plain text, empty arguments left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item not in ("", None)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    text = " ".join(str(value).casefold().split())
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Decimal(text) if is_number or _PLAIN_NUMBER.fullmatch(text) else text


def _pair(calls: Sequence[Call], gold: Sequence[Call], equal: Callable[[Call, Call], bool]) -> list[tuple[Call, Call]]:
    """Pair equal calls wherever they stand, then the others in their order."""
    open_gold, open_calls, pairs = list(gold), [], []
    for call in calls:
        found = next((wanted for wanted in open_gold if equal(call, wanted)), None)
        if found is None:
            open_calls.append(call)
        else:
            open_gold.remove(found)
            pairs.append((call, found))
    return pairs + list(zip(open_calls, open_gold, strict=False))


def _feedback(calls: Sequence[Call], gold: Sequence[Call], pairs: Sequence[tuple[Call, Call]], lenient: bool) -> str:
    """Say what is wrong, quoting nothing but the response's own words."""
    if not calls:
        return FORMAT_FEEDBACK
    same = _equal_leniently if lenient else _equal
    lines = []
    if len(calls) != len(gold):
        lines.append(f"Too {'few' if len(calls) < len(gold) else 'many'} tool calls: {len(calls)}.")
    elif all(same(*pair) for pair in _pair(calls, gold, same)) and not lenient:
        return "The tool calls are right, but their order is not."
    position = {id(call): index for index, call in enumerate(calls, 1)}
    wrong = [(call, wanted) for call, wanted in pairs if not same(call, wanted)]
    malformed = {id(call) for call, _ in wrong}
    wrong += [(call, None) for call in calls if call.arguments is None and id(call) not in malformed]
    for call, wanted in sorted(wrong, key=lambda pair: position[id(pair[0])])[:_SHOWN_CALLS]:
        lines += [f"Call {position[id(call)]} ({_quote(call.name)}): {fault}" for fault in _faults(call, wanted, lenient)]
    return "\n".join(lines)


def _faults(call: Call, gold: Call | None, lenient: bool) -> list[str]:
    faults = []
    if call.arguments is None:
        faults.append("its Action Input is not one JSON object." if call.broken else "it has no Action Input.")
    if gold is None:
        return faults
    if (_plain_name(call.name) != _plain_name(gold.name)) if lenient else (call.name != gold.name):
        return [*faults, "this is not the tool to call here."]  # arguments of another tool: nothing to say of them
    if call.arguments is None:
        return faults
    have, want = (_plain(call.arguments), _plain(gold.arguments)) if lenient else (call.arguments, gold.arguments)
    faults += [f"the argument {_quote(key)} has not the right value." for key in have if key in want and not _same(have[key], want[key])]
    faults += [f"the argument {_quote(key)} does not belong there." for key in have if key not in want]
    if missing := sum(key not in have for key in want):
        faults.append(f"{missing} {'argument is' if missing == 1 else 'arguments are'} missing.")
    return faults


def _quote(words: str) -> str:
    return json.dumps(words[:_SHOWN], ensure_ascii=False)
