"""Every source: a row of its published raw schema becomes a record that our verifiers know, with a prompt to be read in tests/golden/."""

import base64
import json
import pickle
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.records import FIELDS, RecordError, Skip, load_tests
from data.rows import to_row
from data.sources import SOURCES, Options, recognise, source_named
from data.sources.livecodebench import decode_tests, signature_of
from data.sources.math import gsm8k_answer
from data.sources.prompts import with_right_count
from data.sources.statement import describe
from tests.raw_rows import FUNCTIONAL, QUESTION, ROWS, case, codeforces, livecodebench, packed
from tests.tools import ROOT
from trainer import rewards

OWN, PUBLISHED = Options(), Options(published_prompts=True)


def made(name: str, how: Options = OWN, **changed) -> dict:
    return SOURCES[name].convert({**ROWS[name], **changed}, how)


def written(record: dict) -> str:
    tests = "" if record["tests"] == "-" else f"=== tests\n{json.dumps(json.loads(record['tests']), indent=1, ensure_ascii=False)}\n"
    system = "" if record["system"] is None else f"=== system\n{record['system']}\n"
    return f"{system}=== user\n{record['prompt']}\n=== answer\n{record['answer']}\n{tests}"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_record_that_reads_as_agreed(name):
    source, record = SOURCES[name], made(name)
    assert tuple(record) == FIELDS
    assert record["dataset"] == (source.dataset or "dapo_math")
    assert rewards.entry_of(record["dataset"])  # a verifier judges it
    row = to_row(record, "train", "here")
    assert row["reward_model"]["ground_truth"] == (record["tests"] if record["kind"] == "code" else record["answer"])
    golden = ROOT / "tests" / "golden" / f"prompt_{name.split('/')[-1].replace('-', '_').lower()}.txt"
    assert written(record) == golden.read_text(encoding="utf-8")


def test_every_source_has_a_row_here():
    assert {name for name in SOURCES if name not in ("Material", "Physics")} == set(ROWS)


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("tooluse", "lasgroup/verifiable-corpus")])
def test_the_published_wording_is_another_one_with_the_same_answer(name):
    own, published = made(name), made(name, PUBLISHED)
    assert own["prompt"] != published["prompt"]
    assert (own["answer"], own["tests"]) == (published["answer"], published["tests"])
    if own["kind"] == "code":
        assert (
            "The time limit is 1 second." in published["prompt"]
            and f"within {json.loads(own['tests'])['time_limit']:g} second" in own["prompt"]
        )


def test_two_options_are_not_called_four():
    assert "two options" in made("Biology")["system"] and "(A or B)" in made("Biology")["system"]
    assert "four options" in made("Chemistry")["system"] and "(A, B, C, or D)" in made("Chemistry")["system"]
    assert "four options" in made("Biology", PUBLISHED)["system"]


@pytest.mark.parametrize("domain", ["biology", "chemistry", "material", "physics"])
def test_the_published_records_come_out_of_their_raw_rows(shared_data, domain):
    """With the published wording each record of the real files is the same, field by field."""
    convert, checked = SOURCES[domain.title()].convert, 0
    for split in ("train", "test"):
        for line in (shared_data / "sciknoweval" / domain / f"{split}.json").read_text().splitlines():
            real = json.loads(line)
            question = real["description"].removesuffix(" The solution will be evaluated in a mcq environment.")
            listed = real["prompt"].removeprefix(question + "\n\n").removesuffix("\nPlease reason step by step.")
            starts = [0, *(listed.index(f"\n{letter}: ") + 1 for letter in "BCD" if f"\n{letter}: " in listed), len(listed) + 1]
            texts = [listed[a + 3 : b - 1] for a, b in pairwise(starts)]
            row = {"question": question, "answerKey": real["answer"], "choices": {"label": list("ABCD"[: len(texts)]), "text": texts}}
            record = convert(row, PUBLISHED)
            assert {**record, "idx": real["idx"]} == {**real, "contest_date": None}
            if len(texts) == 2:
                assert "two options" in with_right_count(real["system"], "AB") and "(A or B)" in with_right_count(real["system"], "AB")
            checked += 1
    assert checked == {"biology": 500, "chemistry": 2100, "material": 935, "physics": 800}[domain]


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=4, max_size=4, unique=True), st.integers(0, 9))
def test_the_letter_follows_the_option_wherever_the_shuffle_puts_it(texts, seed):
    row = dict(zip(("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"), texts, strict=True))
    record = made("Idavidrein/gpqa-D", Options(seed=seed), **row)
    assert f"\n{record['answer']}) {texts[0]}\n" in record["prompt"] + "\n"
    assert record == made("Idavidrein/gpqa-D", Options(seed=seed), **row)  # seeded


def test_the_shuffle_depends_on_seed_and_question_and_favours_no_letter():
    letters = [made("Idavidrein/gpqa-D", Question=f"{QUESTION} ({i})")["answer"] for i in range(400)]
    assert all(70 < letters.count(letter) < 130 for letter in "ABCD")
    assert letters != [made("Idavidrein/gpqa-D", Options(seed=1), Question=f"{QUESTION} ({i})")["answer"] for i in range(400)]


@pytest.mark.parametrize(
    ("solution", "number"),
    [("#### 1,234", "1234"), ("#### -3", "-3"), ("x\n#### 2.5\n", "2.5"), ("####$1,000,000 ", "1000000"), ("a #### b\n#### 7", "7")],
)
def test_gsm8k_answers_keep_their_sign_and_all_digits(solution, number):
    assert gsm8k_answer(solution) == number


def test_gsm8k_as_it_is(shared_data):
    """Every answer is the number after ####; the published reading loses 84 distinct ones at their comma."""
    commas = 0
    for split, count in (("train", 7473), ("test", 1319)):
        rows = [json.loads(line) for line in (shared_data / "gsm8k" / f"{split}.jsonl").read_text().splitlines()]
        records = [SOURCES["openai/gsm8k"].convert(row, Options()) for row in rows]
        assert len(records) == count
        for row, record in zip(rows, records, strict=True):
            said = row["answer"].rsplit("#### ", 1)[1].strip()
            assert record["answer"] == said.replace(",", "") and float(record["answer"]) == float(said.replace(",", ""))
            commas += "," in said
    assert commas > 84


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("Chemistry", {"answerKey": "E"}, "field 'answerKey' is 'E', not one of the labels A, B, C, D"),
        ("Chemistry", {"choices": None}, "field 'choices' is None"),
        ("Chemistry", {"question": ""}, "field 'question' is ''"),
        ("TIGER-Lab/MMLU-Pro", {"answer": "J"}, "field 'answer' is 'J', but the options are A to E"),
        ("TIGER-Lab/MMLU-Pro", {"answer": "AB"}, "field 'answer' is 'AB'"),
        ("TIGER-Lab/MMLU-Pro", {"answer_index": 2}, "field 'answer_index' is 2"),
        ("TIGER-Lab/MMLU-Pro", {"options": ["a"]}, "field 'options'"),
        ("Idavidrein/gpqa-D", {"Correct Answer": None}, "field 'Correct Answer' is None"),
        ("openai/gsm8k", {"answer": "no mark"}, "field 'answer' has no closing line"),
        ("openai/gsm8k", {"answer": "#### many"}, "closes with 'many'"),
        ("math-ai/aime25", {"answer": [1]}, r"field 'answer' is \[1\]"),
        ("tooluse", {"answer": "[1]"}, "field 'answer' .*not a list of calls"),
        ("tooluse", {"answer": "{"}, "field 'answer' is not JSON"),
        ("lasgroup/verifiable-corpus", {"kind": "code"}, "field 'tests'"),
        ("livecodebench/code_generation_lite", {"private_test_cases": "junk"}, "field 'private_test_cases' cannot be decoded"),
        ("livecodebench/code_generation_lite", {"public_test_cases": '[{"input": 1}]'}, "field 'public_test_cases' does not hold tests"),
        ("livecodebench/code_generation_lite-v6", {"metadata": "{}"}, "field 'metadata'.*func_name"),
        ("open-r1/codeforces", {"official_tests": [{"input": 3}]}, "field 'official_tests' holds"),
        ("evalplus/humanevalplus", {"test": "def check(:"}, "field 'test' is not Python"),
        ("evalplus/mbppplus", {"code": "x = 1"}, "field 'code' defines no function"),
    ],
)
def test_malformed_rows_are_refused_by_field(name, changed, message):
    with pytest.raises(RecordError, match=message):
        made(name, **changed)


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("zwhe99/DeepMath-103K", {"final_answer": " "}, "no gold answer"),
        ("math-ai/aime24", {"solution": "\\boxed{}"}, "no gold answer"),
        ("open-r1/codeforces", {"generated_checker": "import sys"}, "several answers"),
        ("open-r1/codeforces", {"interaction_format": "Ask."}, "interactive"),
        ("open-r1/codeforces", {"input_mode": "file"}, "input from a file"),
        ("open-r1/codeforces", {"official_tests": []}, "no tests beyond the examples"),
        ("Qwen/CodeElo", {"interaction": "Ask."}, "interactive"),
        ("Qwen/CodeElo", {"examples": []}, "no tests"),
        ("livecodebench/code_generation_lite", {"public_test_cases": "[]", "private_test_cases": "[]"}, "no tests"),
        ("livecodebench/code_generation_lite", {"public_test_cases": json.dumps([case("1", "1", "functional")])}, "tests of two kinds"),
    ],
)
def test_what_cannot_be_judged_is_left_out_with_a_reason(name, changed, reason):
    with pytest.raises(Skip, match=reason):
        made(name, **changed)


def test_public_tests_come_first_and_are_counted():
    tests = load_tests(made("livecodebench/code_generation_lite")["tests"])
    assert tests["inputs"] == ["1 2\n", "4 5\n", "1\n", "7 7 7\n"] and tests["outputs"] == ["3\n", "9\n", "1\n", "21\n"]
    assert (tests["public"], tests["testtype"], tests["fn_name"], tests["time_limit"]) == (1, "stdin", "", 6)
    tests = load_tests(made("livecodebench/code_generation_lite-v6")["tests"])
    assert (tests["public"], len(tests["inputs"]), tests["testtype"], tests["fn_name"]) == (1, 2, "functional", "longest")
    tests = load_tests(made("open-r1/codeforces")["tests"])
    assert (tests["inputs"], tests["public"], tests["time_limit"]) == (["6 6 4", "1 1 1\n"], 1, 2.0)  # the example is not tested twice
    assert load_tests(made("Qwen/CodeElo")["tests"])["public"] == 2
    assert "public" not in load_tests(made("evalplus/mbppplus")["tests"])  # a source without public tests


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    text = base64.b64encode(zlib.compress(pickle.dumps(Harm()))).decode()
    with pytest.raises(RecordError, match=r"field 'f' cannot be decoded \(UnpicklingError: it asks for io.open"):
        decode_tests(text, "f")
    assert not (tmp_path / "harm").exists()
    assert decode_tests(packed([case("a", "b")]), "f") == decode_tests(json.dumps([case("a", "b")]), "f") == [case("a", "b")]


def test_the_signature_is_that_of_a_plain_function():
    assert signature_of(FUNCTIONAL["starter_code"]) == "def longest(words: List[str], k: int) -> int:"
    assert signature_of("class Solution:\n    def now(self) -> int:\n") == "def now() -> int:"


def test_the_window_of_version_6():
    keep = SOURCES["livecodebench/code_generation_lite-v6"].keep
    dates = ("2025-01-31T23:59:00", "2025-02-01T00:00:00", "2025-04-30T00:00:00", "2025-05-01T00:00:00")
    assert [keep(livecodebench(date=date)) for date in dates] == [False, True, True, False]


def test_the_editorial_stays_out():
    assert "Round up" not in made("open-r1/codeforces")["prompt"] and "Round up" in made("open-r1/codeforces", PUBLISHED)["prompt"]
    assert codeforces()["examples"][0]["input"] not in made("open-r1/codeforces")["prompt"]
    assert made("open-r1/codeforces")["contest_date"] == "2025-02-01"


@pytest.mark.parametrize(
    ("name", "solution"),
    [("evalplus/humanevalplus", "def double(x):\n    return 2 * x\n"), ("evalplus/mbppplus", ROWS["evalplus/mbppplus"]["code"])],
)
def test_assert_style_tests_run_on_their_own(name, solution):
    (source,) = load_tests(made(name)["tests"])["inputs"]
    exec(solution + "\n" + source, {})
    with pytest.raises(AssertionError):
        exec(solution.replace("return ", "return not ") + "\n" + source, {})


def test_evalplus_own_files_are_read_too():
    """Their MBPP rows have no `test` but `assertion`, no `code` but `canonical_solution`."""
    row = {"prompt": "Say f.", "canonical_solution": "def f():\n    return 1\n", "entry_point": "f", "assertion": "assert f() == 1"}
    tests = load_tests(SOURCES["evalplus/mbppplus"].convert(row, Options())["tests"])
    assert tests["inputs"] == ["assert f() == 1\n"] and tests["fn_name"] == "f"


@pytest.mark.parametrize(
    ("problem", "description"),
    [
        ("Add two numbers, please.\n\nInput\n\nTwo numbers.", "Add two numbers, please."),
        ("Add two numbers, please.\n### Input Format:\nx", "Add two numbers, please."),
        ("Add two numbers, please.\n-----Input-----\nx", "Add two numbers, please."),
        ("Add two numbers, please.\n\nExample 1:\n\nx", "Add two numbers, please."),
        ("Add two numbers, please.\nInput - two numbers\nx", "Add two numbers, please."),
        ("Add two numbers, please. For example: 1 2\nx", ""),
        ("Add two numbers of the input and print them.\nEnd", "Add two numbers of the input and print them.\nEnd"),
        ("Short\nInput\nx", ""),
    ],
)
def test_descriptions_end_before_the_input(problem, description):
    assert describe(problem) == description


def test_names_and_recognition():
    with pytest.raises(ValueError, match=r"--dataset_name=chemistry: no such data set. Did you mean 'Chemistry'\? Known: Biology"):
        source_named("chemistry")
    for name in ("zwhe99/DeepMath-103K", "Idavidrein/gpqa-D", "TIGER-Lab/MMLU-Pro", "open-r1/codeforces", "Qwen/CodeElo"):
        assert recognise(ROWS[name]).name == name
    assert recognise(["problem", "answer"]) is None  # half a dozen sets look so
