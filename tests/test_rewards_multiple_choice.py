"""Multiple choice: what counts as an answer in each of the three formats, and agreement with real data."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rewards import verify
from trainer.types import Outcome

TAGGED = [
    ("<reasoning>x</reasoning>\n<answer>\nB\n</answer>", Outcome.PASS, "B"),
    ("<answer>b</answer>", Outcome.PASS, "B"),  # case does not matter; the published scorer fails it
    ("<answer>A</answer> or rather <answer>B</answer>", Outcome.PASS, "B"),
    ("<answer>B</answer> no: <answer>A</answer>", Outcome.FAIL, "A"),
    ("<answer>B</answer> then <answer>Both</answer>", Outcome.PASS, "B"),  # the last well-formed one
    ("<answer>B</answer> and a summary after it", Outcome.PASS, "B"),
    ("<think>Is it <answer>A</answer>?</think><answer>B</answer>", Outcome.PASS, "B"),
    ("<think>So <answer>B</answer>.</think> It is B.", Outcome.FORMAT, ""),
    ("<think>So <answer>B</answer>", Outcome.FORMAT, ""),
    ("<answer>B", Outcome.FORMAT, ""),
    ("B", Outcome.FORMAT, ""),
    ("The answer is B.", Outcome.FORMAT, ""),
    ("", Outcome.FORMAT, ""),
]
BOXED = [
    (r"so \boxed{B}.", Outcome.PASS, "B"),
    (r"\boxed{ b }", Outcome.PASS, "B"),
    (r"\boxed{(B)}", Outcome.PASS, "B"),
    (r"\boxed{B)}", Outcome.PASS, "B"),
    (r"\boxed{B.}", Outcome.PASS, "B"),
    (r"\boxed{\text{B}}", Outcome.PASS, "B"),
    (r"\boxed{\textbf{(B)}}", Outcome.PASS, "B"),
    (r"\boxed{{B}}", Outcome.PASS, "B"),
    (r"\boxed{$B$}", Outcome.PASS, "B"),
    (r"\boxed{\rm B}", Outcome.PASS, "B"),
    (r"\boxed{\textsf{B}}", Outcome.PASS, "B"),
    (r"<think>\boxed{A}</think> \boxed{B}", Outcome.PASS, "B"),
    (r"<think>\boxed{B}", Outcome.FORMAT, ""),
    (r"\boxed{\alpha}", Outcome.FORMAT, ""),
    (r"$\boxed{\mathrm{B}}$ and words after it", Outcome.PASS, "B"),
    (r"\boxed{A} no: \boxed{B}", Outcome.PASS, "B"),
    (r"\boxed{B} no: \boxed{A}", Outcome.FAIL, "A"),
    (r"\boxed{B} with energy \boxed{3.2 eV}", Outcome.PASS, "B"),  # the last well-formed one
    (r"\boxed{B", Outcome.FORMAT, ""),
    (r"\boxed{}", Outcome.FORMAT, ""),
    (r"\boxed{B or C}", Outcome.FORMAT, ""),
    (r"\boxed{B) the red one}", Outcome.FORMAT, ""),
    (r"\boxed{\text{B}", Outcome.FORMAT, ""),
    ("B", Outcome.FORMAT, ""),
    ("The answer is B: a good one", Outcome.FORMAT, ""),  # the published scorer takes the article for an A
]
PHRASE = [
    ("Hence the answer is (B).", Outcome.PASS, "B"),
    ("The answer is B.", Outcome.PASS, "B"),
    ("the answer is (b)", Outcome.PASS, "B"),
    ("Answer: B", Outcome.PASS, "B"),
    ("**Answer:** B", Outcome.PASS, "B"),
    ("**Answer: (B)**", Outcome.PASS, "B"),
    ("FINAL ANSWER: B", Outcome.PASS, "B"),
    ("The correct answer is: **B**", Outcome.PASS, "B"),
    ("the answer is option (B)", Outcome.PASS, "B"),
    (r"The answer is $\boxed{B}$", Outcome.PASS, "B"),
    ("The answer is (B) because of it", Outcome.PASS, "B"),
    *[
        (f"The answer is {way}.", Outcome.PASS, "B")
        for way in ('"B"', "`B`", r"\text{B}", "(**B**)", "**(B)**", "[B]", r"\boxed{\text{B}}")
    ],
    ("The answer is (B). In answer: A", Outcome.PASS, "B"),
    ("<think>The answer is (A).</think>The answer is (B).", Outcome.PASS, "B"),
    ("<think>The answer is (B).", Outcome.FORMAT, ""),
    ("The answer is (A). Wait, the answer is (B).", Outcome.PASS, "B"),
    ("The answer is (B). Wait, the answer is (A).", Outcome.FAIL, "A"),
    ("The answer is (B). My answer is final.", Outcome.PASS, "B"),  # the last well-formed one
    ("The answer is (J)", Outcome.FAIL, "J"),
    ("The answer is (K)", Outcome.FORMAT, ""),
    ("The answer is a matter of taste", Outcome.FORMAT, ""),
    ("The answer is not (B)", Outcome.FORMAT, ""),
    ("The answer is I think (B)", Outcome.FORMAT, ""),
    ("The answer is B because of it", Outcome.FORMAT, ""),
    ("B", Outcome.FORMAT, ""),
    ("", Outcome.FORMAT, ""),
]
FORMATS = {"sciknoweval": "<answer>", "gpqa": "\\boxed{}", "mmlu_pro": "the answer is (X)"}
CASES = [(source, *case) for source, cases in (("sciknoweval", TAGGED), ("gpqa", BOXED), ("mmlu_pro", PHRASE)) for case in cases]


@pytest.mark.parametrize(("source", "response", "outcome", "pred"), CASES)
def test_multiple_choice(source, response, outcome, pred):
    verdict = verify(source, response, "B", {})
    assert (verdict.outcome, verdict.pred) == (outcome, pred)
    assert verdict.reward == verdict.acc == float(outcome == Outcome.PASS)
    assert verdict.incorrect_format == (outcome == Outcome.FORMAT) == (FORMATS[source] in verdict.feedback)


@pytest.mark.parametrize("source", FORMATS)
def test_feedback_depends_on_no_gold_letter(source):
    for response in ("", "<answer>D</answer>", r"\boxed{D}", "the answer is (D)"):
        assert len({verify(source, response, gold).feedback for gold in "ABC"}) == 1


@pytest.mark.parametrize("gold", ["", "AB", "7", "-", "Z"])
def test_a_gold_answer_that_is_no_letter_is_named(gold):
    for source in FORMATS:
        with pytest.raises(ValueError, match=f"ground_truth='{gold}'"):
            verify(source, "<answer>A</answer>", gold)


def test_blank_runs_take_no_time():
    for text in ("\\boxed{", "answer is", "answer is (", "<answer>", "answer", "answer**", "the answer is option "):
        for source in FORMATS:
            assert verify(source, (text + " " * 50_000) * 4, "B").outcome == Outcome.FORMAT
            assert verify(source, text * 20_000, "B").outcome == Outcome.FORMAT


@given(st.text(), st.sampled_from(sorted(FORMATS)), st.sampled_from(["<answer>", "\\boxed{", "the answer is ("]))
def test_no_text_breaks_multiple_choice(text, source, start):
    for response in (text, start + text, text + start):
        assert verify(source, response, "B").outcome in (Outcome.PASS, Outcome.FAIL, Outcome.FORMAT)


@given(st.text(alphabet="xyz.\n "), st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_the_asked_format_is_always_read(before, gold, letter):
    for source, answer in (("sciknoweval", "<answer>{}</answer>"), ("gpqa", "\\boxed{{{}}}"), ("mmlu_pro", "The answer is ({}).")):
        verdict = verify(source, before + answer.format(letter), gold)
        assert (verdict.outcome == Outcome.PASS) == (letter == gold) and verdict.pred == letter


def test_every_gold_letter_of_the_real_data_passes_and_every_other_fails(shared_data):
    counts = {}
    for domain in ("biology", "chemistry", "material", "physics"):
        for split in ("train", "test"):
            for line in (shared_data / "sciknoweval" / domain / f"{split}.json").read_text().splitlines():
                gold = json.loads(line)["answer"]
                outcomes = {
                    letter: verify("sciknoweval", f"<reasoning>r</reasoning>\n<answer>\n{letter}\n</answer>", gold).outcome
                    for letter in "ABCD"
                }
                assert outcomes == {letter: Outcome.PASS if letter == gold else Outcome.FAIL for letter in "ABCD"}
                counts[domain] = counts.get(domain, 0) + 1
    assert counts == {"biology": 500, "chemistry": 2100, "material": 935, "physics": 800}


def test_recorded_rewards_of_the_authors_rollouts_are_reproduced(shared_data):
    rows = [json.loads(line) for line in (shared_data / "rollouts_sample" / "candidate_responses.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert verify("sciknoweval", row["response_text"], row["ground_truth"]).reward == row["reward"], row["response_id"]
