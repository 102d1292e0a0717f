"""Files of rows: the formats, any layout of an array, errors that name file and line, output whole or not at all."""

import json
import signal
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import reading
from data.reading import data_files, read_rows
from data.records import RecordError, dump_tests, load_tests, seconds_of
from data.writing import put, whole, write_array

VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), min_size=1, max_size=8)


@given(RECORDS, st.sampled_from([None, 0, 2]), st.integers(1, 9))
def test_an_array_reads_back_however_it_is_laid_out_and_cut(tmp_path_factory, records, indent, chunk):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text("\n " + json.dumps(records, indent=indent, ensure_ascii=False) + " \n", encoding="utf-8")
    whole_chunk, reading.CHUNK = reading.CHUNK, chunk  # values end anywhere within what is read at once
    try:
        assert [row for _, row in read_rows(path)] == records
    finally:
        reading.CHUNK = whole_chunk


@given(RECORDS)
def test_what_is_written_reads_back(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("written")
    assert write_array(records, folder / "a.json") == len(records)
    assert json.loads((folder / "a.json").read_text(encoding="utf-8")) == records
    with whole(folder / "l.jsonl") as (partial,), partial.open("w", encoding="utf-8") as file:
        for record in records:
            put(file, record)
    for name in ("a.json", "l.jsonl"):
        assert [row for _, row in read_rows(folder / name)] == records


def test_an_array_has_one_record_a_line(tmp_path):
    write_array([{"a": "ü"}, {"b": 2}], tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '[\n  {"a": "ü"},\n  {"b": 2}\n]\n'


def test_parquet_and_csv(tmp_path):
    pq.write_table(pa.table({"q": ["a", "b"], "long": ["x", "y"]}), tmp_path / "t.parquet")
    assert [row for _, row in read_rows(tmp_path / "t.parquet", ["q", "absent"])] == [{"q": "a"}, {"q": "b"}]
    assert next(read_rows(tmp_path / "t.parquet"))[1] == {"q": "a", "long": "x"}
    (tmp_path / "t.csv").write_text('\ufeffQuestion,Correct Answer\n"two\nlines, and a comma",x\n', encoding="utf-8")
    assert list(read_rows(tmp_path / "t.csv")) == [
        (f"{tmp_path}/t.csv: record 1", {"Question": "two\nlines, and a comma", "Correct Answer": "x"})
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", b'[{"a": 1},\n {"a": 2},\n {oops}]', r"a\.json: line 3 is not JSON"),
        ("a.json", b'[{"a":\n\n 1},\n {oops}]', r"a\.json: line 4 is not JSON"),
        ("a.json", b'[{"a": 1},\n {"a": 2}\n', r"a\.json: line 3 ends within the array"),
        ("a.json", b'[{"a": 1}, {"a":', r"a\.json: line 1 is not JSON"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', r"a\.json: line 2 has '\[' after the array's end"),
        ("a.json", b'[{"a": 1}]rubbish', r"a\.json: line 1 has 'r' after the array's end"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', r"a\.json: line 2 has '\{' where a comma or the array's end is needed"),
        ("a.json", b'[{"a": 1},\n, {"a": 2}]', r"a\.json: line 2 is not JSON"),
        ("a.json", b'[{"a": 1},]', r"a\.json: line 1 is not JSON"),
        ("l.jsonl", b'{"a": 1}\n\n{"a": \n', r"l\.jsonl: line 3 is not JSON"),
        ("l.jsonl", b'{"a": "\xff"}', r"l\.jsonl is not UTF-8"),
        ("t.parquet", b"PAR1 and nothing more", r"t\.parquet cannot be read as Parquet"),
        ("t.csv", b"a,b\n", r"t\.csv holds no record"),
        ("absent.json", None, r"absent\.json: no such file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(RecordError, match=message):
        list(read_rows(tmp_path / name))


def test_rows_come_before_the_line_that_is_broken(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"a": 1}\n{"a": 2}\n{')
    rows = read_rows(tmp_path / "l.jsonl")
    assert [next(rows)[0], next(rows)[0]] == [f"{tmp_path}/l.jsonl: record 1", f"{tmp_path}/l.jsonl: record 2"]


def test_the_files_of_a_split_in_a_folder_as_on_the_hub(tmp_path):
    names = (
        "main/test-0.parquet",
        "main/train-1.parquet",
        "main/train-0.parquet",
        "socratic/test-0.parquet",
        "README.md",
        "x/y/deep.jsonl",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def found(*arguments):
        return [file.relative_to(tmp_path).as_posix() for file in data_files(*arguments)]

    assert found(tmp_path, "train", None, "main") == ["main/train-0.parquet", "main/train-1.parquet"]
    assert found(tmp_path / "x", "test") == ["x/y/deep.jsonl"]
    for name in ("gpqa_main.csv", "gpqa_diamond.csv"):
        (tmp_path / "x" / name).touch()
    assert found(tmp_path / "x", "train", "gpqa_diamond*") == ["x/gpqa_diamond.csv"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match=r"empty holds no data file of test \(\.parquet"):
        data_files(tmp_path / "empty", "test")
    (tmp_path / "empty" / "test.json").touch()
    with pytest.raises(RecordError, match=r"empty holds no data file of train"):  # never the test set to train on
        data_files(tmp_path / "empty", "train")
    assert data_files(tmp_path / "empty", "train", only=True) == [tmp_path / "empty" / "test.json"]  # there is but one split


def test_files_that_belong_together_come_together(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "a").write_text("old")
    with suppress(RuntimeError), whole(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write_text("new")
        b.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]
    with suppress(SystemExit), whole(tmp_path / "new" / "deep" / "a") as (a,):
        a.write_text("new")
        signal.raise_signal(signal.SIGTERM)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and signal.getsignal(signal.SIGTERM) == before
    with whole(tmp_path / "a", tmp_path / "b") as (a, b):
        a.write_text("new")
        b.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [("a", "new"), ("b", "new")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputs": None}, "field 'tests.inputs' is None, not a list"),
        ({"outputs": ["1"]}, "field 'tests' has 2 inputs but 1 outputs"),
        ({"testtype": "assert"}, "field 'tests.testtype' is 'assert'; it must be one of stdin"),
        ({"public": 3}, "field 'tests.public' is 3, not a count of the 2 tests"),
        ({"public": True}, "field 'tests.public' is True"),
        ({"testtype": "functional", "fn_name": ""}, "field 'tests.fn_name' is ''; functional tests need"),
        ({"time_limit": "x"}, "field 'tests.time_limit' is 'x', neither seconds nor null"),
        ({"inputs": ["1", 1]}, "field 'tests.inputs' holds 1, where text is needed"),
        ({"outputs": [None, "1"]}, "field 'tests.outputs' holds None"),
    ],
)
def test_tests_are_checked_by_field(changed, message):
    good = json.loads(dump_tests(["1", "2"], ["1", "4"], "stdin", time_limit=2, public=1))
    assert load_tests(json.dumps(good)) == load_tests(good) == good
    with pytest.raises(RecordError, match=message):
        load_tests({**good, **changed})


def test_time_limits():
    values = (None, "", "2 seconds", "1.5", "soon", 3, 0, -1, float("nan"), True)
    assert [seconds_of(value, 1.0) for value in values] == [1, 1, 2, 1.5, 1, 3, 1, 1, 1, 1]
