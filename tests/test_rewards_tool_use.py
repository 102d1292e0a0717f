"""Tool use: what is read as a call, strict and lenient equality, feedback that holds no gold, and all 68 real rows."""

import copy
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rewards import verify
from trainer.types import Outcome


def gold_of(*calls):
    return json.dumps([{"Action": name, "Action_Input": json.dumps(arguments)} for name, arguments in calls])


def written(calls) -> str:
    """What a perfect model writes for calls (name, arguments as JSON text)."""
    return "\n".join(f"Thought: I use a tool.\nAction: {name}\nAction Input: {arguments}" for name, arguments in calls)


def judged(response, gold, **extra_info):
    return verify("tooluse", response, gold, extra_info)


ONE = gold_of(("getFacts", {"topic": "habitat", "limit": 3}))
EMPTY = gold_of(("listAll", {}))
RIGHT = '{"topic": "habitat", "limit": 3}'


@pytest.mark.parametrize(
    "response",
    [
        f"Thought: x\nAction: getFacts\nAction Input: {RIGHT}",
        'Action: getFacts\nAction Input: {"limit": 3.0,\n  "topic": "habitat"}',  # one number; no order of keys
        f"**Action:** getFacts\n**Action Input:** {RIGHT}",
        f"**Action**: `getFacts`\n**Action Input**:\n```json\n{RIGHT}\n```",
        f"Action:getFacts\nAction Input:{RIGHT}",
        f"1. Action: getFacts\n2. Action Input: {RIGHT}",
        f"### Action: getFacts\n### Action Input: `{RIGHT}`",
        f"Thought: x Action: getFacts Action Input: {RIGHT}",
        f"Thought: what is the best Action: none?\nAction: getFacts\nAction Input: {RIGHT}",
        f"Action: getFacts\nAction Input: {RIGHT}\nObservation: {{}}\nThought: done",
        f"<think>Action: listAll\nAction Input: {{}}</think>\nAction: getFacts\nAction Input: {RIGHT}",
    ],
)
def test_what_is_read_as_the_call(response):
    verdict = judged(response, ONE)
    assert (verdict.outcome, verdict.reward, verdict.feedback, verdict.incorrect_format) == (Outcome.PASS, 1.0, "", False)
    assert verdict.details == {"calls": 1, "calls_expected": 1, "calls_matched": 1}


@pytest.mark.parametrize(
    ("response", "gold", "outcome", "feedback"),
    [
        ("I would call getFacts.", ONE, Outcome.FORMAT, "in the required format"),
        ("", ONE, Outcome.FORMAT, "in the required format"),
        ("<think>Action: listAll\nAction Input: {}", EMPTY, Outcome.FORMAT, "in the required format"),
        ("Action: listAll", EMPTY, Outcome.FORMAT, "no Action Input"),  # not {}
        ("Action: listAll\nAction Input: ", EMPTY, Outcome.FORMAT, "not one JSON object"),
        ("Action: listAll\nAction Input: {", EMPTY, Outcome.FORMAT, "not one JSON object"),
        ("Action: listAll\nAction Input: {}}", EMPTY, Outcome.FORMAT, "not one JSON object"),
        ("Action: listAll\nAction Input: []", EMPTY, Outcome.FORMAT, "not one JSON object"),
        ("Action: getFacts\nAction Input: {'topic': 'habitat', 'limit': 3}", ONE, Outcome.FORMAT, "not one JSON object"),
        (f"Action: getFacts\nAction Input: {RIGHT}\nAction Input: {{}}", ONE, Outcome.FORMAT, "not one JSON object"),
        (f"Action: getFacts\nAction Input: {RIGHT}\n{{}}", ONE, Outcome.FORMAT, "not one JSON object"),
        ('Action: getFacts\nAction Input: {"topic": "x", "topic": "habitat", "limit": 3}', ONE, Outcome.FORMAT, "not one JSON object"),
        (f"Action: getFacts\nAction Input: {RIGHT}\nAction: None", ONE, Outcome.FORMAT, "Too many tool calls: 2."),
        ('Action: getFacts\nAction Input: {"topic": "habitat"}', ONE, Outcome.FAIL, "1 argument is missing"),
        ("Action: getFacts\nAction Input: {}", ONE, Outcome.FAIL, "2 arguments are missing"),
        ('Action: getFacts\nAction Input: {"topic": "Habitat", "limit": 3}', ONE, Outcome.FAIL, '"topic" has not the right value'),
        ('Action: getFacts\nAction Input: {"topic": "habitat", "limit": "3"}', ONE, Outcome.FAIL, '"limit" has not the right value'),
        ('Action: getFacts\nAction Input: {"topic": "habitat", "limit": 3, "page": 1}', ONE, Outcome.FAIL, '"page" does not belong'),
        (f"Action: getfacts\nAction Input: {RIGHT}", ONE, Outcome.FAIL, "not the tool to call"),
        (f"Action: getFacts\nAction Input: {RIGHT}\nAction: getFacts\nAction Input: {RIGHT}", ONE, Outcome.FAIL, "Too many tool calls: 2."),
        (f"Action: getFacts\nAction Input: {RIGHT}\nObservation: ok\nAction: listAll\nAction Input: {{}}", ONE, Outcome.FAIL, "Too many"),
        ('Action: f\nAction Input: {"on": 1}', gold_of(("f", {"on": True})), Outcome.FAIL, '"on" has not'),
        ('Action: f\nAction Input: {"on": [2, 1]}', gold_of(("f", {"on": [1, 2]})), Outcome.FAIL, '"on" has not'),
    ],
)
def test_what_is_not_the_call(response, gold, outcome, feedback):
    verdict = judged(response, gold)
    assert (verdict.outcome, verdict.reward, verdict.acc) == (outcome, 0.0, 0.0)
    assert feedback in verdict.feedback and verdict.incorrect_format == (outcome == Outcome.FORMAT)


def test_a_label_inside_an_argument_is_not_a_call():
    arguments = {"text": "x\nAction: g\nAction Input: {}", "deep": {"a": [{"b": {"c": "}"}}]}}
    assert judged(written([("f", json.dumps(arguments))]), gold_of(("f", arguments))).outcome == Outcome.PASS
    assert judged('Action: f\nAction Input: {"text": "see Action: g"}', gold_of(("f", {"text": "see Action: g"}))).outcome == Outcome.PASS


def test_order_and_assignment_count_unless_lenient():
    gold = gold_of(("f", {"a": 1}), ("g", {"b": "Two Words"}))
    right, swapped = [("f", '{"a": 1}'), ("g", '{"b": "Two Words"}')], [("g", '{"b": "Two Words"}'), ("f", '{"a": 1}')]
    assert judged(written(right), gold).outcome == judged(written(right), gold, tool_calls="lenient").outcome == Outcome.PASS
    verdict = judged(written(swapped), gold)
    assert verdict.outcome == Outcome.FAIL and verdict.feedback == "The tool calls are right, but their order is not."
    assert judged(written(swapped), gold, tool_calls="lenient").outcome == Outcome.PASS
    moved = [("f", '{"b": "Two Words"}'), ("g", '{"a": 1}')]
    assert judged(written(moved), gold).outcome == judged(written(moved), gold, tool_calls="lenient").outcome == Outcome.FAIL


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ('{"topic": " HABITAT ", "limit": "3"}', True),
        ('{"topic": "habitat", "limit": 3.0, "page": "", "sort": null}', True),
        ('{"topic": "habitats", "limit": 3}', False),
        ('{"topic": "habitat", "limit": 4}', False),
        ('{"topic": "habitat", "limit": 3, "page": 1}', False),
        ('{"topic": "habitat"}', False),
    ],
)
def test_lenient_arguments(arguments, same):
    gold = gold_of(("[Optional]getFacts", {"topic": "habitat", "limit": 3}))
    assert (judged(written([("GetFacts", arguments)]), gold, tool_calls="lenient").outcome == Outcome.PASS) == same
    assert judged(written([("GetFacts", arguments)]), gold).outcome == Outcome.FAIL


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("12345678901234567891", "12345678901234567892", False),
        ("1e999", "2e999", False),
        ("007", 7, False),
        ("1_0", 10, False),
        ("-1.50", -1.5, True),
        (True, "1", False),
    ],
)
def test_lenient_numbers(one, other, same):
    response, gold = written([("f", json.dumps({"n": one}))]), gold_of(("f", {"n": other}))
    assert (judged(response, gold, tool_calls="lenient").outcome == Outcome.PASS) == same


@pytest.mark.parametrize(
    "gold",
    [
        "",
        "[]",
        "{}",
        "-",
        '[{"Action": "f"}]',
        '[{"Action": "f", "Action_Input": "{"}]',
        '[{"Action": "f", "Action_Input": "[]"}]',
        '[{"Action": "f", "Action_Input": "{\\"a\\": 1, \\"a\\": 2}"}]',
    ],
)
def test_gold_calls_that_cannot_be_read_are_named(gold):
    with pytest.raises(ValueError, match=r"ground_truth=.*mend the row"):
        judged("Action: f\nAction Input: {}", gold)


@given(st.text(), st.sampled_from(["", "Action: ", "Action: f\nAction Input: ", "Action: f\nAction Input: {", "Action Input: {}"]))
def test_no_text_breaks_tool_use(text, start):
    for mode in ("strict", "lenient"):
        assert judged(start + text, ONE, tool_calls=mode).outcome in (Outcome.FAIL, Outcome.FORMAT)


def test_hostile_texts_take_no_time():
    for text in ("Action: " * 20_000, "Action:\n" * 20_000, '{"a":' * 50_000, " " * 100_000, "**" * 50_000, "- " * 50_000):
        for start in ("", "Action: f\nAction Input: "):
            assert judged(start + text, ONE).reward == 0.0
            assert len(judged(start + text, ONE).feedback) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["f", "get it", "[Optional]f", "a_b.c"]), st.dictionaries(st.text(max_size=4), JSON, max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_any_call_written_down_is_read_back(calls):
    for indent in (None, 2):
        response = written([(name, json.dumps(arguments, indent=indent)) for name, arguments in calls])
        for mode in ("strict", "lenient"):
            assert judged(response, gold_of(*calls), tool_calls=mode).outcome == Outcome.PASS


# ---------------------------------------------------------------------------------------------------------------------
# The 68 real rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(shared_data):
    lines = (shared_data / "tooluse" / "test.json").read_text().splitlines()
    golds = [json.loads(line)["answer"] for line in lines]
    return [(gold, [(call["Action"], json.loads(call["Action_Input"])) for call in json.loads(gold)]) for gold in golds]


def changed(value):
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "x"]
    return {**value, "x": 1}


def neighbours(calls):
    """Every answer one mistake away from the right calls, as text, with a name for the mistake."""
    texts = [(name, json.dumps(arguments)) for name, arguments in calls]
    for place, (name, arguments) in enumerate(calls):
        yield "dropped", written(texts[:place] + texts[place + 1 :])
        yield "doubled", written(texts[: place + 1] + texts[place:])
        yield "other name", written([*texts[:place], ("no" + name, texts[place][1]), *texts[place + 1 :]])
        yield "no input", written(texts[:place]) + f"\nAction: {name}\n" + written(texts[place + 1 :])
        yield "open input", written([*texts[:place], (name, texts[place][1][:-1]), *texts[place + 1 :]])
        for key in arguments:
            for fault, new in (
                ("changed", {**arguments, key: changed(arguments[key])}),
                ("left out", {other: value for other, value in arguments.items() if other != key}),
                ("added", {**arguments, key + "2": 1}),
            ):
                yield fault, written([*texts[:place], (name, json.dumps(new)), *texts[place + 1 :]])
            for target in range(len(calls)):
                if target != place and calls[target][1].get(key) != arguments[key]:
                    moved = copy.deepcopy(calls)
                    moved[target][1][key] = moved[place][1].pop(key)
                    yield "moved", written([(other, json.dumps(given)) for other, given in moved])
        for target in range(place):
            if calls[target] != calls[place]:
                order = list(texts)
                order[place], order[target] = order[target], order[place]
                yield "swapped", written(order)


def test_a_perfect_answer_scores_68_of_68(rows):
    assert len(rows) == 68 and sum(len(calls) for _, calls in rows) == 96
    for indent in (None, 2):
        for mode in ("strict", "lenient"):
            responses = [written([(name, json.dumps(arguments, indent=indent)) for name, arguments in calls]) for _, calls in rows]
            assert sum(judged(text, gold, tool_calls=mode).reward for text, (gold, _) in zip(responses, rows, strict=True)) == 68


QUOTED = r'"(?:[^"\\]|\\.)*"'
LINES = re.compile(
    r"The tool calls are right, but their order is not\.|Too (?:few|many) tool calls: \d+\."
    r"|Your response holds no tool call in the required format: .*"
    rf"|Call \d+ \({QUOTED}\): (?:it has no Action Input\.|its Action Input is not one JSON object\.|this is not the tool to call here\."
    rf"|the argument {QUOTED} has not the right value\.|the argument {QUOTED} does not belong there\.|\d+ arguments? (?:is|are) missing\.)"
)


def test_every_neighbour_fails_and_its_feedback_quotes_nothing_but_the_response(rows):
    """Feedback is made of fixed sentences and of words in quotation marks that the response wrote itself: it can hold no gold."""
    seen = {}
    for gold, calls in rows:
        for fault, response in neighbours(calls):
            verdict = judged(response, gold)
            assert verdict.outcome in (Outcome.FAIL, Outcome.FORMAT) and verdict.reward == verdict.acc == 0.0, (fault, response)
            assert verdict.details["calls_matched"] < max(verdict.details["calls"], len(calls))
            assert verdict.feedback
            for line in verdict.feedback.splitlines():
                assert LINES.fullmatch(line), line
                assert all(json.loads(words) in response for words in re.findall(QUOTED, line)), line
            seen[fault] = seen.get(fault, 0) + 1
    assert set(seen) == {"dropped", "doubled", "other name", "no input", "open input", "changed", "left out", "added", "moved", "swapped"}
    assert sum(seen.values()) > 1000


def test_feedback_on_an_answer_of_another_row_holds_none_of_the_gold_words(rows):
    for (gold, calls), (_, others) in zip(rows, rows[1:] + rows[:1], strict=True):
        response = written([(name, json.dumps(arguments)) for name, arguments in others])
        feedback = judged(response, gold).feedback
        secrets = [name for name, _ in calls] + [key for _, arguments in calls for key in arguments]
        secrets += [value for _, arguments in calls for value in arguments.values() if isinstance(value, str) and len(value) > 3]
        assert all(secret in response for secret in secrets if f'"{secret}"' in feedback)
