"""Splits: disjoint and exhaustive, the published draw to the record, a held-out one that keeps problems and dates apart."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import split_tasks, split_tests
from data.records import choose_tests, load_tests
from data.sources import SOURCES, Options
from data.split_tasks import draw
from data.split_tests import first_test_date, half
from data.writing import write_array
from tests.raw_rows import livecodebench, packed
from trainer.files import read_jsonl


@given(st.integers(3, 300), st.floats(0.01, 0.6), st.integers(0, 5))
def test_the_draw_is_disjoint_exhaustive_and_seeded(count, ratio, seed):
    train, test = draw(count, ratio, seed)
    assert sorted(train + test) == list(range(count)) and train and len(test) == int(np.ceil(ratio * count))
    assert draw(count, ratio, seed) == (train, test)


@pytest.mark.parametrize("domain", ["biology", "chemistry", "material", "physics"])
def test_the_published_files_come_out_record_by_record(shared_data, tmp_path, domain, capsys):
    """All records, in the order of idx, split with the published ratio and seed."""
    real = {split: read_jsonl(shared_data / "sciknoweval" / domain / f"{split}.json") for split in ("train", "test")}
    write_array(sorted(real["train"] + real["test"], key=lambda record: record["idx"]), tmp_path / "all.json")
    arguments = ["--json_path", str(tmp_path / "all.json"), "--output_dir", str(tmp_path), "--test_ratio", "0.1", "--seed", "42"]
    assert split_tasks.main(arguments) == 0
    assert {split: read_jsonl(tmp_path / f"{split}.json") for split in real} == real
    shared = "1 of train.json have a prompt that is also in test.json" in capsys.readouterr().out
    assert shared == (domain == "material")
    assert split_tasks.main([*arguments, "--separate_duplicates"]) == 0
    apart = {split: read_jsonl(tmp_path / f"{split}.json") for split in real}
    assert not {r["prompt"] for r in apart["train"]} & {r["prompt"] for r in apart["test"]}
    assert sorted(r["idx"] for part in apart.values() for r in part) == sorted(r["idx"] for part in real.values() for r in part)


@pytest.mark.parametrize(("ratio", "message"), [("0", "0 would go"), ("1", "3 would go"), ("1.5", "5 would go")])
def test_a_split_with_an_empty_side_is_refused(tmp_path, ratio, message, capsys):
    write_array([{"prompt": "p", "idx": i} for i in range(3)], tmp_path / "all.json")
    assert split_tasks.main(["--json_path", str(tmp_path / "all.json"), "--output_dir", str(tmp_path / "out"), "--test_ratio", ratio]) == 2
    assert message in capsys.readouterr().err and not list((tmp_path / "out").glob("*"))


def test_a_split_that_would_leave_nothing_to_train_on_is_refused(tmp_path, capsys):
    write_array([{"prompt": "p", "idx": i} for i in range(3)], tmp_path / "all.json")
    assert (
        split_tasks.main(["--json_path", str(tmp_path / "all.json"), "--output_dir", str(tmp_path / "out"), "--separate_duplicates"]) == 2
    )
    assert "--separate_duplicates: every prompt" in capsys.readouterr().err and not (tmp_path / "out").exists()


def code_records(dates, tests=4):
    private = packed([{"input": str(i), "output": str(i), "testtype": "stdin"} for i in range(tests - 1)])
    rows = [livecodebench(i, f"{date}T00:00:00", private_test_cases=private) for i, date in enumerate(dates)]
    return [{**SOURCES["livecodebench/code_generation_lite"].convert(row, Options()), "idx": i} for i, row in enumerate(rows)]


def run(tmp_path, records, *more):
    write_array(records, tmp_path / "all.json")
    code = split_tests.main(["--json_path", str(tmp_path / "all.json"), "--output_dir", str(tmp_path / "out"), *more])
    return code, *(read_jsonl(tmp_path / "out" / f"{split}.json") if code == 0 else [] for split in ("train", "test"))


def test_the_published_split_by_tests(tmp_path, capsys):
    """The problems are the same; train has the half that numpy's global generator, seeded once with 0, would choose."""
    records = code_records(["2025-02-01", "2025-03-01", "2025-04-01"], tests=7)
    code, train, test = run(tmp_path, records)
    assert code == 0 and test == records
    np.random.seed(0)
    for one, record in zip(train, records, strict=True):
        tests, chosen = load_tests(record["tests"]), sorted(np.random.choice(7, size=3, replace=False))
        part = load_tests(one["tests"])
        assert part["inputs"] == [tests["inputs"][i] for i in chosen] and part["outputs"] == [tests["outputs"][i] for i in chosen]
        assert part["public"] == sum(i < tests["public"] for i in chosen)
        assert {**one, "tests": ""} == {**record, "tests": ""}
    out = capsys.readouterr().out
    assert "train 3.0, test 7.0" in out and "the training problems are the evaluation problems" in out


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 9))
def test_half_of_the_tests_in_order_with_their_public_ones(count, public, seed):
    tests = {
        "inputs": list(range(count)),
        "outputs": [str(i) for i in range(count)],
        "testtype": "stdin",
        "public": min(public, count),
        "time_limit": 6,
    }
    part = half(tests, np.random.RandomState(seed))
    assert len(part["inputs"]) == max(1, count // 2) and part["inputs"] == sorted(set(part["inputs"]))
    assert part["outputs"] == [str(i) for i in part["inputs"]]
    assert part["inputs"][: part["public"]] == [i for i in part["inputs"] if i < tests["public"]]
    assert part["time_limit"] == 6
    assert "public" not in choose_tests({"inputs": [1], "outputs": [1]}, [0])


@given(st.lists(st.dates().map(str), min_size=2, max_size=40).filter(lambda dates: len(set(dates)) > 1), st.floats(0.05, 0.95))
def test_the_first_test_date_leaves_both_sides_something(dates, ratio):
    start, asked = first_test_date(dates, ratio), max(1, round(ratio * len(dates)))
    later = sum(date >= start for date in dates)
    assert start in dates and 0 < later < len(dates)
    assert later >= asked or start == sorted(set(dates))[1]  # dates stay whole: less only where train would be empty
    assert sum(date > start for date in dates) < asked  # and no earlier than needed


def test_held_out_puts_problems_and_dates_apart(tmp_path, capsys):
    dates = [f"2025-0{month}-0{day}" for month in (2, 3, 4) for day in (1, 1, 5, 9)]
    records = code_records(dates)
    again = {**records[0], "contest_date": "2025-04-09", "idx": 12}  # an early problem that was set again late
    before = {**records[-1], "contest_date": "2025-02-01", "idx": 13}  # a late one that had been set early
    code, train, test = run(tmp_path, [*records, again, before], "--held_out")
    assert code == 0
    assert sorted(r["idx"] for r in train + test) == list(range(14))
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in test}
    assert {r["idx"] for r in test} >= {0, 11, 12, 13}
    assert max(r["contest_date"] for r in train) < min(r["contest_date"] for r in test if r["idx"] not in (0, 13))
    assert all(len(load_tests(r["tests"])["inputs"]) == 4 for r in train + test)  # nobody loses tests
    assert "none in both" in capsys.readouterr().out
    code, train, test = run(tmp_path, records, "--held_out", "--test_from", "2025-04-01")
    assert [r["contest_date"] >= "2025-04-01" for r in train] == [False] * 8 and len(test) == 4


def test_what_held_out_needs(tmp_path, capsys):
    records = code_records(["2025-02-01", "2025-02-01"])
    assert run(tmp_path, records, "--held_out")[0] == 2
    assert "all contests are of 2025-02-01" in capsys.readouterr().err
    assert run(tmp_path, records, "--held_out", "--test_from", "2024-01-01")[0] == 2
    assert "0 problems are earlier and 2 are not" in capsys.readouterr().err
    assert run(tmp_path, [records[0], {**records[1], "contest_date": None}], "--held_out")[0] == 2
    assert "all.json: record 2, line 3: field 'contest_date' is None" in capsys.readouterr().err
    assert run(tmp_path, [records[0], {**records[1], "contest_date": "2024-9-15"}], "--held_out")[0] == 2
    assert "record 2, line 3: field 'contest_date' is '2024-9-15', not a date YYYY-MM-DD" in capsys.readouterr().err
    for date in ("2024-9-15", "April", "20240915"):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path, records, "--held_out", "--test_from", date)
        assert f"'{date}'" in capsys.readouterr().err
    assert run(tmp_path, [{**records[0], "tests": "{}"}])[0] == 2
    assert "all.json: record 1, line 2: field 'tests.inputs' is None" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*"))
    assert json.loads((tmp_path / "all.json").read_text())  # the input is untouched
