"""load_dataset.py: the `datasets` library on a hub-like folder, local copies, flags, and what is said where nothing can be had."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import convert_evalplus_to_parquet, hub, load_dataset
from data.records import FIELDS
from data.rows import SCHEMA
from data.sources import SOURCES
from tests.raw_rows import QUESTION, ROWS, livecodebench
from tests.tools import ROOT
from trainer.dataset import find_file
from trainer.errors import UserError


def load(*arguments) -> int:
    return load_dataset.main([str(argument) for argument in arguments])


def on_hub(monkeypatch, name: str, folder: Path) -> None:
    """Let a source's hub repository be a local folder: the `datasets` library reads both alike."""
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], hub=str(folder), config=None))


def write_parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [name for name in ROWS if name != "tooluse"])
def test_the_hub_and_a_local_copy_give_the_same_records(name, monkeypatch, tmp_path, capsys):
    """Each source streams through `datasets` from what the hub holds: Parquet, or LiveCodeBench's plain files."""
    source = SOURCES[name]
    if source.data_files:
        files = [write_lines(tmp_path / "hub" / file, [ROWS[name]]) for file in source.data_files]
    else:
        files = [write_parquet(tmp_path / "hub" / f"{source.split}-00000-of-00001.parquet", [ROWS[name]] * 2)]
    rows = len(source.data_files) or 2
    on_hub(monkeypatch, name, tmp_path / "hub")
    assert load("--dataset_name", name, "--output_path", tmp_path / "hub.json") == 0
    assert f"hub.json: {rows} records" in capsys.readouterr().out
    from_hub = json.loads((tmp_path / "hub.json").read_text())
    assert [record["idx"] for record in from_hub] == list(range(rows)) and tuple(from_hub[0]) == FIELDS
    assert load("--dataset_name", name, "--output_path", tmp_path / "local.json", "--local_path", files[0]) == 0
    local = json.loads((tmp_path / "local.json").read_text())
    assert local == from_hub[: len(local)] and local
    assert local[0] == {**source.convert(ROWS[name], load_dataset.Options()), "idx": 0}


def test_a_set_whose_configs_have_no_default(monkeypatch, tmp_path):
    """SciKnowEval's spare config is taken where the hub asks for one."""
    write_parquet(tmp_path / "hub" / "v1" / "test-0.parquet", [{**ROWS["Chemistry"], "question": "old"}])
    write_parquet(tmp_path / "hub" / "v2" / "test-0.parquet", [ROWS["Chemistry"]])
    configs = "".join(f"- config_name: {v}\n  data_files:\n  - split: test\n    path: {v}/*.parquet\n" for v in ("v1", "v2"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    on_hub(monkeypatch, "Chemistry", tmp_path / "hub")
    assert load("--dataset_name", "Chemistry", "--output_path", tmp_path / "out.json") == 0
    assert [QUESTION in record["prompt"] for record in json.loads((tmp_path / "out.json").read_text())] == [True]


def test_other_domains_levels_and_dates_are_not_chosen(tmp_path, capsys):
    row = ROWS["Chemistry"]
    others = ({"domain": "Physics"}, {"details": {"level": "L2"}}, {"type": "true_or_false"})
    raw = write_lines(tmp_path / "raw.jsonl", [{**row, **other} for other in others] + [row])
    assert load("--dataset_name", "Chemistry", "--local_path", raw) == 0
    raw = write_lines(tmp_path / "test6.jsonl", [livecodebench(0, "2025-01-31"), livecodebench(1, "2025-02-01")])
    assert load("--dataset_name", "livecodebench/code_generation_lite-v6", "--local_path", tmp_path) == 0
    assert capsys.readouterr().out.splitlines() == ["1 records; --output_path PATH writes them"] * 2


def test_slices_categories_embeddings_and_several_sets(tmp_path, capsys):
    rows = [{**ROWS["TIGER-Lab/MMLU-Pro"], "question": f"q{i}", "category": ("computer science", "law")[i % 2]} for i in range(8)]
    raw, out = write_lines(tmp_path / "raw.jsonl", rows), tmp_path / "out.json"
    np.save(tmp_path / "e.npy", np.arange(8.0).reshape(4, 2))
    arguments = ["--dataset_name", "TIGER-Lab/MMLU-Pro", "--local_path", raw, "--output_path", out]
    assert load(*arguments, "--category", "computer_science", "--start_idx", 1, "--num_el", 2, "--embeddings_file", tmp_path / "e.npy") == 0
    records = json.loads(out.read_text())
    assert [(r["idx"], r["description"][:2], r["embedding"]) for r in records] == [(1, "q2", [2.0, 3.0]), (2, "q4", [4.0, 5.0])]
    assert load(*arguments, "--category", "false") == 0 and len(json.loads(out.read_text())) == 8
    assert load(*arguments, "--category", "physics") == 2 and "no record is left (--category=physics" in capsys.readouterr().err
    assert load(*arguments, "--embeddings_file", tmp_path / "e.npy") == 2 and "has 4 rows, fewer" in capsys.readouterr().err
    assert len(json.loads(out.read_text())) == 8  # what was there stays
    assert load(*arguments, "--start_idx", -1) == 2 and "--start_idx=-1" in capsys.readouterr().err


def test_several_sets_in_one_file(monkeypatch, tmp_path):
    for name in ("math-ai/math500", "math-ai/aime24"):
        write_parquet(tmp_path / name / "test-0.parquet", [ROWS[name]])
        on_hub(monkeypatch, name, tmp_path / name)
    assert load("--dataset_name", "math-ai/math500,math-ai/aime24", "--output_path", tmp_path / "out.json") == 0
    assert [(r["idx"], r["dataset"]) for r in json.loads((tmp_path / "out.json").read_text())] == [(0, "math500"), (1, "aime24")]


def test_rows_left_out_are_counted_and_malformed_ones_named(tmp_path, capsys):
    row = ROWS["zwhe99/DeepMath-103K"]
    raw = write_lines(tmp_path / "raw.jsonl", [row, {**row, "final_answer": ""}, row, {**row, "final_answer": " "}])
    assert load("--dataset_name", "zwhe99/DeepMath-103K", "--local_path", raw, "--output_path", tmp_path / "out.json") == 0
    assert capsys.readouterr().out == f"{tmp_path}/out.json: 2 records\n  left out 2: no gold answer\n"
    assert [record["idx"] for record in json.loads((tmp_path / "out.json").read_text())] == [0, 1]
    for bad, message in (
        ({**row, "question": None}, "raw.jsonl: record 2: field 'question' is None"),
        ([], "raw.jsonl: record 2 is not an object"),
    ):
        write_lines(raw, [row, bad])
        assert load("--dataset_name", "zwhe99/DeepMath-103K", "--local_path", raw, "--output_path", tmp_path / "new.json") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "new.json").exists()
    write_lines(raw, [{"question": "no domain"}])
    assert load("--dataset_name", "Chemistry", "--local_path", raw) == 2
    assert "record 1: field 'domain' is missing (it has question)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("Chemistry", {"details": "L3"}),
        ("open-r1/codeforces", {"examples": 5}),
        ("open-r1/codeforces", {"contest_start": 1e15}),
        ("evalplus/mbppplus", {"code": 5}),
        ("evalplus/mbppplus", {"test_imports": 5}),
    ],
)
def test_values_of_unforeseen_types_name_their_record(tmp_path, name, changed, capsys):
    raw = write_lines(tmp_path / "raw.jsonl", [ROWS[name], {**ROWS[name], **changed}])
    assert load("--dataset_name", name, "--local_path", raw) == 2
    assert "raw.jsonl: record 2: cannot be converted (" in capsys.readouterr().err


def test_without_a_network_the_way_out_is_said():
    """As scripts, from another folder than the root."""
    script = ROOT / "data" / "load_dataset.py"

    def said(name: str) -> str:
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(script), "--dataset_name", name]
        result = subprocess.run(command, cwd=ROOT / "docs", env=env, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 2 and result.stdout == ""
        return result.stderr

    error = said("Idavidrein/gpqa-D")
    assert "Idavidrein/gpqa-D: Idavidrein/gpqa cannot be read from the hub" in error and "hf auth login" in error
    assert 'hf download Idavidrein/gpqa --repo-type dataset --include "*gpqa_diamond*" --local-dir DIR' in error
    assert "--local_path DIR" in error and "Traceback" not in error
    assert "hf download livecodebench/code_generation_lite --repo-type dataset test6.jsonl --local-dir DIR" in said(
        "livecodebench/code_generation_lite-v6"
    )


def test_what_is_not_at_its_place_is_said(monkeypatch, tmp_path, capsys):
    urls = {"train": (tmp_path / "absent.json").as_uri()}
    monkeypatch.setitem(SOURCES, "tooluse", dataclasses.replace(SOURCES["tooluse"], urls=urls))
    assert load("--dataset_name", "tooluse") == 2
    error = capsys.readouterr().err
    assert "absent.json cannot be fetched" in error and "curl -L --fail -o DIR/train.json file:" in error and "--local_path" in error
    assert load("--dataset_name", "tooluse", "--local_path", tmp_path / "absent") == 2
    assert "absent: no such file or folder" in capsys.readouterr().err


def test_a_stream_that_breaks_leaves_nothing(monkeypatch, tmp_path, capsys):
    def stream(source, split):
        yield ROWS["math-ai/aime25"]
        raise ConnectionError("gone")

    monkeypatch.setattr(hub, "_stream", stream)
    assert load("--dataset_name", "math-ai/aime25", "--output_path", tmp_path / "out.json") == 2
    assert "cannot be read from the hub (ConnectionError: gone)" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_tool_use_is_fetched_or_local(monkeypatch, tmp_path, shared_data, capsys):
    urls = {"test": (shared_data / "tooluse" / "test.json").as_uri()}
    monkeypatch.setitem(SOURCES, "tooluse", dataclasses.replace(SOURCES["tooluse"], urls=urls))
    assert load("--dataset_name", "tooluse", "--split", "test", "--output_path", tmp_path / "fetched.json") == 0
    assert (
        load(
            "--dataset_name",
            "tooluse",
            "--split",
            "test",
            "--output_path",
            tmp_path / "local.json",
            "--local_path",
            shared_data / "tooluse",
        )
        == 0
    )
    records = json.loads((tmp_path / "local.json").read_text())
    assert records == json.loads((tmp_path / "fetched.json").read_text()) and len(records) == 68
    real = [json.loads(line) for line in (shared_data / "tooluse" / "test.json").read_text().splitlines()]
    assert [(r["prompt"], r["answer"], r["elo"]) for r in records] == [(r["prompt"], r["answer"], 1500) for r in real]
    assert load("--dataset_name", "tooluse") == 2 and "there is no split 'train'; there are test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_name", "Chemistri"], "Did you mean 'Chemistry'?"),
        (["--dataset_name", "Chemistry", "--category", "x"], "Chemistry has no categories"),
        (["--dataset_name", "math-ai/aime24", "--split", "train"], "--split=train: math-ai/aime24 has test"),
        (["--dataset_name", "math-ai/aime24,math-ai/aime25", "--local_path", "x"], "--local_path=x/aime24: no such file or folder"),
    ],
)
def test_flags_that_do_not_fit(arguments, message, capsys):
    assert load(*arguments) == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--push_dataset_path", "x"], ["--download_output_dir", "x", "--dataset_name", "Chemistry"], []])
def test_flags_that_go_together(arguments):
    with pytest.raises(SystemExit, match="2"):
        load(*arguments)


def test_whole_sets_to_and_from_the_hub(monkeypatch, tmp_path, capsys):
    import datasets

    folder = tmp_path / "set"
    write_parquet(folder / "train.parquet", [{"a": 1, "only": "x"}])
    write_parquet(folder / "val.parquet", [{"a": 2}])
    pushed = {}
    monkeypatch.setattr(datasets.DatasetDict, "push_to_hub", lambda self, name: pushed.update({name: self}))
    assert load("--push_dataset_path", folder, "--push_hf_dataset_name", "me/set", "--dataset_name", "ignored") == 0
    assert {split: part.to_list() for split, part in pushed["me/set"].items()} == {
        "train": [{"a": 1, "only": "x"}],
        "validation": [{"a": 2, "only": None}],
    }
    assert (
        load("--push_dataset_path", tmp_path, "--push_hf_dataset_name", "me/set") == 2
        and "holds no Parquet file" in capsys.readouterr().err
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pushed[name])
    assert load("--download_hf_dataset_name", "me/set", "--download_output_dir", tmp_path / "got") == 0
    assert pq.read_table(tmp_path / "got" / "validation.parquet").to_pylist() == [{"a": 2, "only": None}]
    assert load("--download_hf_dataset_name", "me/other", "--download_output_dir", tmp_path / "none") == 2
    assert "me/other cannot be read from the hub (KeyError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "dataset"), [("humaneval", "evalplus/humanevalplus"), ("mbpp", "evalplus/mbppplus"), ("hmmt25_nov", "MathArena/hmmt_nov_2025")]
)
def test_own_files_of_evalplus_and_hmmt_to_the_one_schema(tmp_path, name, dataset, capsys):
    raw = write_lines(tmp_path / "raw.jsonl", [ROWS[dataset], ROWS[dataset]])
    arguments = ["--dataset", name, "--input_path", str(raw), "--output_path", str(tmp_path / "test.parquet")]
    assert convert_evalplus_to_parquet.main(arguments) == 0 and "test.parquet: 2 rows" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "test.parquet")
    assert table.schema == SCHEMA and table["data_source"].to_pylist() == [SOURCES[dataset].dataset] * 2
    assert table["extra_info"].to_pylist()[1]["index"] == "1" and len(set(table["uid"].to_pylist())) == 2
    write_lines(raw, [{"id": 1}])
    assert convert_evalplus_to_parquet.main(arguments) == 2 and "raw.jsonl: record 1: field" in capsys.readouterr().err


def test_prepare_all_goes_on_past_a_failure_and_tells_it_at_the_end(shared_data, tmp_path):
    """Local copies in the place of the hub; the outputs go beside a copy of the scripts, not into this checkout."""
    for name in ("data", "scripts", "trainer", "requirements.txt", "setup.py"):
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / name, ignore=ignored) if source.is_dir() else shutil.copy(source, tmp_path / name)
    raw = tmp_path / "raw"
    for name in ("gsm8k", "tooluse"):
        shutil.copytree(shared_data / name, raw / name)
    write_lines(raw / "sciknoweval" / "biology" / "test.jsonl", [{**ROWS["Biology"], "question": f"q{i}"} for i in range(20)])
    for name, dataset in (("math500", "math-ai/math500"), ("aime25", "math-ai/aime25"), ("deepmath", "zwhe99/DeepMath-103K")):
        write_lines(raw / name / ("train.jsonl" if name == "deepmath" else "test.jsonl"), [ROWS[dataset]] * 2)
    write_lines(raw / "aime24" / "test.jsonl", [ROWS["math-ai/aime24"]])
    write_lines(raw / "lcb_v6" / "test6.jsonl", [livecodebench(i, f"2025-0{2 + i % 3}-01") for i in range(6)])
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "VIRTUAL_ENV": sys.prefix, "HF_HUB_OFFLINE": "1", "RAW_DATA": "raw"}
    names = ["sciknoweval/biology", "amc23", "lcb_v6_held_out", "tooluse", "math", "lcb_v6"]
    script = ["bash", str(tmp_path / "data" / "prepare_all.sh"), *names]
    result = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 1, result.stderr
    assert "not made: amc23\n" in result.stderr and f"only: RAW_DATA={raw} bash data/prepare_all.sh amc23\n" in result.stderr
    assert not (tmp_path / "datasets" / "amc23").exists()
    assert "math-ai/amc23 cannot be read from the hub" in result.stderr
    rows = {p.relative_to(tmp_path / "datasets").as_posix(): len(pq.read_table(p)) for p in tmp_path.glob("datasets/**/*.parquet")}
    assert rows == {
        "sciknoweval/biology/train.parquet": 18,
        "sciknoweval/biology/test.parquet": 2,
        "tooluse/test.parquet": 68,  # the raw folder has no train file
        "math/train.parquet": 2,
        "math/test.parquet": 5,
        "lcb_v6/train.parquet": 6,
        "lcb_v6/test.parquet": 6,
        "lcb_v6_held_out/train.parquet": 4,
        "lcb_v6_held_out/test.parquet": 2,
    }
    assert (
        pq.read_table(tmp_path / "datasets/math/test.parquet")["data_source"].to_pylist() == ["math500"] * 2 + ["aime24"] + ["aime25"] * 2
    )
    result = subprocess.run([*script[:2], "aime99"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 2 and "unknown name aime99" in result.stderr and "humanevalplus" in result.stderr


def test_missing_data_names_the_line_that_fetches_it(monkeypatch, tmp_path):
    """For the folders that prepare_all.sh fills; for others the line that converts one's own records."""
    monkeypatch.chdir(ROOT)
    script = (ROOT / "data" / "prepare_all.sh").read_text(encoding="utf-8")
    names = script.split("NAMES=(")[1].split(")")[0].split()
    assert len(names) == 21
    for name in names:
        with pytest.raises(UserError) as error:  # a folder of the same name elsewhere
            find_file(f"{tmp_path}/datasets/{name}/test.parquet", "test", "data.val_files")
        assert "prepare_all" not in str(error.value)
        if not (ROOT / "datasets" / name).exists():
            with pytest.raises(
                UserError, match=rf"no such file. Make it: bash data/prepare_all.sh {name} .*preprocess.py --data_source datasets/{name}"
            ):
                find_file(f"datasets/{name}/test.parquet", "test", "data.val_files")
    with pytest.raises(
        UserError, match=r"Put test.json into datasets/mine and make it: python data/preprocess.py --data_source datasets/mine"
    ):
        find_file("datasets/mine/test.parquet", "test", "data.val_files")
