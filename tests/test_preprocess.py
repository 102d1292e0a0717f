"""Records and raw shards to Parquet: the schema, the real data, ids, the summary, bounded memory, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import preprocess
from data.preprocess import SCHEMA, RecordError, convert, to_row
from data.records import Skip, dump_tests
from tests.raw_rows import ROWS
from tests.tools import ROOT
from trainer.dataset import load_prompts
from trainer.models import load_chat

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
    tests = dump_tests(["1"], ["2"], "functional", fn_name="f", time_limit=6, public=1)
    record = {**RECORD, "kind": "code", "dataset": "livecodebench", "tests": tests, "prompt": "def f(self, x):"}
    row = to_row(record, "test", "here")
    assert row["reward_model"]["ground_truth"] == tests
    assert to_row({**record, "tests": json.loads(tests)}, "test", "here")["reward_model"]["ground_truth"] == tests
    assert row["prompt"][-1]["content"] == "def f(x):"


def run(folder: Path, *more, out: Path | None = None) -> int:
    return preprocess.main(["--data_source", str(folder), *(["--output_dir", str(out)] if out else []), *map(str, more)])


@pytest.mark.parametrize(
    ("domain", "counts"), [("biology", (450, 50)), ("chemistry", (1890, 210)), ("material", (841, 94)), ("physics", (720, 80))]
)
def test_the_real_sciknoweval(shared_data, tmp_path, domain, counts, capsys):
    """Counts of behaviour 1.7; every row has a system prompt that counts its options right, a letter, and an id of its own."""
    assert run(shared_data / "sciknoweval" / domain, out=tmp_path) == 0
    rows = {split: pq.read_table(tmp_path / f"{split}.parquet").to_pylist() for split in ("train", "test")}
    assert tuple(len(part) for part in rows.values()) == counts
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]] == [[str(count), "0", "sciknoweval"] for count in counts]
    for split, part in rows.items():
        for row in part:
            system, user = row["prompt"]
            assert (system["role"], user["role"]) == ("system", "user") and row["extra_info"]["split"] == split
            two = "\nC: " not in user["content"]
            assert ("two options" in system["content"] and "(A or B)" in system["content"]) == two
            assert ("four options" in system["content"] and "(A, B, C, or D)" in system["content"]) == (not two)
            assert row["reward_model"]["ground_truth"] in ("AB" if two else "ABCD")
    uids = [row["uid"] for part in rows.values() for row in part]
    assert len(set(uids)) == sum(counts)
    if domain == "biology":
        assert run(shared_data / "sciknoweval" / domain, "--published_prompts", out=tmp_path) == 0
        assert {row["system"].count("four") for row in pq.read_table(tmp_path / "train.parquet").to_pylist()} == {1}


def test_the_real_tool_use(shared_data, tmp_path):
    assert run(shared_data / "tooluse", out=tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["test.parquet"]
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    assert len(rows) == 68 and sum(len(json.loads(row["reward_model"]["ground_truth"])) for row in rows) == 96
    assert all([message["role"] for message in row["prompt"]] == ["user"] and row["system"] is None for row in rows)


def test_sources_can_be_concatenated(shared_data, tmp_path):
    """The published schemas differ where all of a column is null or "-"."""
    import datasets

    for name in ("tooluse", "sciknoweval/physics"):
        assert run(shared_data / name, out=tmp_path / name) == 0
    parts = [
        datasets.Dataset.from_parquet(str(tmp_path / name / "test.parquet"), cache_dir=str(tmp_path))
        for name in ("tooluse", "sciknoweval/physics")
    ]
    assert len(datasets.concatenate_datasets(parts)) == 148


def test_ids_are_those_the_loader_would_give(random_model, tmp_path):
    """With the column and without it; repeats are told apart over both splits, and numbered on by the loader."""
    records = [{**RECORD, "prompt": prompt} for prompt in ("a", "b", "a")]
    write(tmp_path / "train.json", json.dumps(records))
    write(tmp_path / "test.json", json.dumps([records[0], {**RECORD, "prompt": "c"}]))
    assert run(tmp_path) == 0
    chat = load_chat(str(random_model), {})

    def loaded(*files, split="train"):
        return [
            p.uid for p in load_prompts([str(file) for file in files], chat, split=split, max_prompt_length=99, drop_overlong=True).prompts
        ]

    first, second, third = loaded(tmp_path / "train.parquet")
    assert third == f"{first}-2" and pq.read_table(tmp_path / "test.parquet")["uid"][0].as_py() == f"{first}-3"
    without = tmp_path / "without.parquet"
    pq.write_table(pq.read_table(tmp_path / "train.parquet").drop_columns(["uid"]), without)
    assert loaded(without) == [first, second, third]
    twice = loaded(tmp_path / "train.parquet", tmp_path / "train.parquet", tmp_path / "test.parquet")
    assert len(set(twice)) == 8 and twice[:3] == [first, second, third]


def test_prompt_tokens_are_those_the_trainer_counts(random_model, tmp_path, capsys):
    write(
        tmp_path / "train.json", json.dumps([{**RECORD, "dataset": "tiny_chains", "system": None, "prompt": p} for p in ("1+2", "1+2+3+4")])
    )
    assert run(tmp_path, "--tokenizer", random_model) == 0
    lengths = [len(load_chat(str(random_model), {}).prompt_ids([{"role": "user", "content": p}])) for p in ("1+2", "1+2+3+4")]
    out = capsys.readouterr().out
    assert "prompt tokens (mean / p99 / max)" in out and f"{sum(lengths) / 2:.0f} / {lengths[1]} / {lengths[1]}" in out
    assert run(tmp_path, "--tokenizer", tmp_path / "none") == 2 and "none cannot be loaded" in capsys.readouterr().err


def test_what_is_left_out_is_counted_and_an_unknown_source_is_noted(tmp_path, capsys):
    empty = {**RECORD, "kind": "code", "dataset": "mine", "tests": '{"inputs": [], "outputs": [], "testtype": "stdin"}'}
    write(tmp_path / "train.json", json.dumps([{**RECORD, "dataset": "mine"}, empty, {**RECORD, "dataset": "mine"}]))
    assert run(tmp_path) == 0
    out = capsys.readouterr().out
    assert "train: left out 1: no tests" in out and "note: no verifier judges 'mine'" in out
    assert len(pq.read_table(tmp_path / "train.parquet")) == 2
    write(tmp_path / "train.json", json.dumps([empty]))
    assert run(tmp_path) == 2 and "no row is left ({'no tests': 1})" in capsys.readouterr().err
    assert len(pq.read_table(tmp_path / "train.parquet")) == 2  # what was there stays


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        *[("sciknoweval", answer) for answer in ("BB", ["B"], "Z")],
        *[("tooluse", answer) for answer in ("nope", '[{"Action": 1, "Action_Input": "{}"}]')],
        *[("math500", answer) for answer in ("\\frac{1}{", "\\mathbb{Z}/2\\mathbb{Z}", "A \\cap B")],
    ],
)
def test_a_gold_answer_that_its_verifier_cannot_read_is_left_out(source, answer):
    with pytest.raises(Skip, match=f"a gold answer that the verifier of {source} cannot read"):
        to_row({**RECORD, "dataset": source, "answer": answer}, "train", "here")


def test_both_splits_or_none(tmp_path, capsys):
    write(tmp_path / "train.json", json.dumps([RECORD]))
    write(tmp_path / "test.json", json.dumps([RECORD, {**RECORD, "prompt": ""}]))
    assert run(tmp_path) == 2 and "test.json: record 2, line 1: field 'prompt'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.json", "train.json"]


DEEPMATH = ROWS["zwhe99/DeepMath-103K"]


def shards(folder: Path, count: int, rows: int) -> Path:
    """Write `count` shards of DeepMath rows as the hub has them, each row with 20 kB that nobody needs."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        with pq.ParquetWriter(folder / f"train-{shard:05d}-of-{count:05d}.parquet", pa.Table.from_pylist([DEEPMATH]).schema) as writer:
            for start in range(0, rows // count, 500):
                chunk = [
                    {**DEEPMATH, "question": f"{shard}: {i} + 1 = ?" + " " * 1500 + "!", "r1_solution_1": "so " * 7000}
                    for i in range(start, start + 500)
                ]
                writer.write_table(pa.Table.from_pylist(chunk))
    return folder


@pytest.mark.parametrize("below", ["", "data"])
def test_a_raw_public_folder_converts_again_and_again(tmp_path, below, capsys):
    """DeepMath-103K as downloaded, train only; the second run does not read what the first one wrote."""
    shards(tmp_path / below, 2, 1000)
    for _ in range(2):
        assert run(tmp_path) == 0
        table = pq.read_table(tmp_path / "train.parquet")
        assert table.schema == SCHEMA and len(table) == 1000 and not (tmp_path / "test.parquet").exists()
        assert "1000         0  deepmath" in capsys.readouterr().out
    row = table.to_pylist()[-1]
    assert row["reward_model"] == {"style": "math", "ground_truth": "4"} and row["data_source"] == "deepmath"
    assert row["prompt"][0]["content"].startswith("1: 499 + 1 = ? ") and row["extra_info"]["index"] == "999"
    for shard in tmp_path.rglob("train-*.parquet"):
        shard.unlink()
    assert run(tmp_path) == 2 and "nor Parquet files of a public data set" in capsys.readouterr().err


def test_shards_that_do_not_tell_what_they_are(tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist([ROWS["math-ai/aime25"]]), tmp_path / "test-00000-of-00001.parquet")
    assert run(tmp_path) == 2
    assert "columns (problem, answer, id) do not tell the data set; data/load_dataset.py --dataset_name NAME" in capsys.readouterr().err


def test_a_hundred_thousand_rows_take_no_more_memory_than_a_few(tmp_path):
    """2 GB of raw rows; what grows with them is the table of ids, some hundred bytes a row."""
    script = (  # VmHWM, as ru_maxrss also counts the process that this one was started from
        "from pathlib import Path; from data.preprocess import main; "
        f"main(['--data_source', {str(tmp_path)!r}]); print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )

    def peak() -> int:
        result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert len(pq.read_table(tmp_path / "train.parquet", columns=["uid"])) == rows
        return int(result.stdout.split()[-1]) >> 10  # MiB

    shards(tmp_path, 1, rows := 5000)
    few = peak()
    big = (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train-0.parquet")
    for i in range(1, 20):
        (tmp_path / f"train-{i}.parquet").hardlink_to(big)
    rows = 100_000
    assert peak() - few < 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([RECORD, {**RECORD, "prompt": " "}]), r"train\.json: record 2, line 1: field 'prompt' is missing or empty"),
        (json.dumps(RECORD) + "\n{oops\n", r"train\.json: line 2 is not JSON"),
        ("[{,]", r"train\.json: line 1 is not JSON"),
        (
            json.dumps([{**RECORD, "answer": "-"}]),
            r"train\.json: record 1, line 1: field 'answer' is missing, so nothing could be verified",
        ),
        (json.dumps([{**RECORD, "kind": "code"}]), r"train\.json: record 1, line 1: field 'tests' is missing"),
        (json.dumps([RECORD, "text"]), r"train\.json: record 2, line 1 is not an object"),
        ("", r"train\.json holds no record"),
        ("[]", r"train\.json holds no record"),
        (json.dumps([{**RECORD, "answer": " "}]), r"record 1, line 1: field 'answer' is missing"),
        (json.dumps([{**RECORD, "elo": float("nan")}]), r"record 1, line 1: field 'elo' is nan, not a number"),
        (json.dumps([{**RECORD, "achievement_prior": "x"}]), r"record 1, line 1: field 'achievement_prior' is 'x', not a number"),
        (json.dumps([{**RECORD, "elo": 10**30}]), r"record 1, line 1: field 'elo' is 1000.*, not a number below 2\^53"),
        (json.dumps([{**RECORD, "description": ["a"]}]), r"record 1, line 1: field 'description' is \['a'\], neither text nor null"),
        ("[\n" + json.dumps({**RECORD, "prompt": "\ud800"}) + "]", r"record 1, line 2: field 'prompt' holds half a surrogate pair"),
        (json.dumps([{**RECORD, "system": {"a": 1}}]), r"record 1, line 1: field 'system' is .*neither text nor null"),
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
        "number beyond floats",
        "list for text",
        "surrogate",
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
    assert "holds neither train.json nor test.json, nor Parquet" in capsys.readouterr().err
