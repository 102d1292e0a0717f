"""JSON records to Parquet: the schema, the real SciKnowEval chemistry, and what is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data import preprocess
from data.preprocess import SCHEMA, RecordError, convert, to_row

RECORD = {"idx": 7, "kind": "mcq", "dataset": "sciknoweval", "answer": "B", "elo": 1500, "prompt": "Which?", "system": "Be brief."}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_record_becomes_a_row_of_the_schema(tmp_path):
    source = write(tmp_path / "train.json", json.dumps([RECORD, {**RECORD, "system": None, "elo": "-", "achievement_prior": 0.5}]))
    assert convert(source, tmp_path / "train.parquet", "train") == 2
    table = pq.read_table(tmp_path / "train.parquet")
    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    assert first["prompt"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    assert first["data_source"] == "sciknoweval" and first["ability"] == "mcq"
    assert first["reward_model"] == {"style": "mcq", "ground_truth": "B"}
    assert first["extra_info"] == {
        "split": "train",
        "index": "7",
        "description": "",
        "problem": "Which?",
        "elo": 1500,
        "achievement_prior": 0.0,
    }
    assert [message["role"] for message in second["prompt"]] == ["user"]  # no system prompt is no turn
    assert second["extra_info"]["elo"] is None and second["extra_info"]["achievement_prior"] == 0.5


def test_code_is_verified_by_its_tests_and_livecodebench_asks_for_the_bare_function():
    record = {**RECORD, "kind": "code", "dataset": "livecodebench", "tests": '{"inputs": []}', "prompt": "def f(self, x):"}
    row = to_row(record, "test", "here")
    assert row["reward_model"]["ground_truth"] == '{"inputs": []}'
    assert row["prompt"][-1]["content"] == "def f(x):"


def test_the_real_chemistry(shared_data, tmp_path, capsys):
    """Counts of behaviour 1.7; every row has the system prompt, and a letter the verifier can pass."""
    assert preprocess.main(["--data_source", str(shared_data / "sciknoweval" / "chemistry"), "--output_dir", str(tmp_path)]) == 0
    tables = {split: pq.read_table(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    assert {split: len(table) for split, table in tables.items()} == {"train": 1890, "test": 210}
    assert "train.parquet: 1890 rows" in capsys.readouterr().out
    for split, table in tables.items():
        for row in table.to_pylist():
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert row["reward_model"]["ground_truth"] in "ABCD"
            assert row["extra_info"]["split"] == split


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([RECORD, {**RECORD, "prompt": " "}]), r"train\.json: record 2: field 'prompt' is missing or empty"),
        (json.dumps(RECORD) + "\n{oops\n", r"train\.json: line 2 is not JSON"),
        ("[{,]", r"train\.json: line 1 is not JSON"),
        (json.dumps([{**RECORD, "answer": "-"}]), r"train\.json: record 1: field 'answer' is missing, so nothing could be verified"),
        (json.dumps([{**RECORD, "kind": "code"}]), r"train\.json: record 1: field 'tests' is missing"),
        (json.dumps([RECORD, "text"]), r"train\.json: record 2 is not an object"),
        ("", r"train\.json holds no record"),
        ("[]", r"train\.json holds no record"),
        (json.dumps([{**RECORD, "answer": " "}]), r"record 1: field 'answer' is missing"),
        (json.dumps([{**RECORD, "elo": float("nan")}]), r"record 1: field 'elo' is nan, not a number"),
        (json.dumps([{**RECORD, "achievement_prior": "x"}]), r"record 1: field 'achievement_prior' is 'x', not a number"),
        (json.dumps([{**RECORD, "system": {"a": 1}}]), r"record 1: field 'system' is .*neither text nor null"),
    ],
    ids=[
        "empty prompt",
        "bad line",
        "bad array",
        "no answer",
        "no tests",
        "no object",
        "empty file",
        "empty array",
        "blank answer",
        "nan",
        "text for a number",
        "object for text",
    ],
)
def test_malformed_records_name_file_record_and_field_and_leave_nothing(tmp_path, text, message):
    source = write(tmp_path / "train.json", text)
    target = write(tmp_path / "train.parquet", "what was there")
    with pytest.raises(RecordError, match=message):
        convert(source, target, "train")
    assert target.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.json", "train.parquet"]


def test_other_bytes(tmp_path):
    source = tmp_path / "train.json"
    source.write_bytes(b"\xef\xbb\xbf\n" + json.dumps([RECORD]).encode())  # a byte-order mark and an empty line
    assert convert(source, tmp_path / "train.parquet", "train") == 1
    source.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(RecordError, match=r"train\.json is not UTF-8"):
        convert(source, tmp_path / "train.parquet", "train")


def test_a_folder_without_records_is_an_error(tmp_path, capsys):
    assert preprocess.main(["--data_source", str(tmp_path)]) == 2
    assert "holds neither train.json nor test.json" in capsys.readouterr().err
