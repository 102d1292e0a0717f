"""JSON records to the Parquet the trainer reads: DIR/{train,test}.json -> DIR/{train,test}.parquet.

    python data/preprocess.py --data_source datasets/sciknoweval/chemistry

Records are those of the published project (behaviour 1.5, 1.7), as a JSON array or one per line. The Parquet schema is
the published one with the same column types whatever the source, so that files can be concatenated (the published
`elo` and `system` change type with the data set, and `embedding`, always empty, is left out).
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

REQUIRED = ("kind", "dataset", "prompt")
ROWS_PER_GROUP = 32
SCHEMA = pa.schema(
    [
        ("prompt", pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))),
        ("system", pa.large_string()),
        ("data_source", pa.large_string()),
        ("ability", pa.large_string()),
        ("reward_model", pa.struct([("style", pa.large_string()), ("ground_truth", pa.large_string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("split", pa.large_string()),
                    ("index", pa.large_string()),
                    ("description", pa.large_string()),
                    ("problem", pa.large_string()),
                    ("elo", pa.int64()),
                    ("achievement_prior", pa.float64()),
                ]
            ),
        ),
    ]
)


class RecordError(Exception):
    """A record that cannot be used; names file, record and field."""


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number from 1, record) of a JSON array or of a file with one JSON object per line."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line.lstrip() for line in file if line.strip()), "")
            file.seek(0)
            if first.startswith("["):
                for number, record in enumerate(json.load(file), 1):
                    yield number, record
            else:
                for line_number, line in enumerate(file, 1):
                    if line.strip():
                        number = line_number
                        yield number, json.loads(line)
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: line {number or error.lineno} is not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not number:
        raise RecordError(f"{path} holds no record")


def to_row(record: dict[str, Any], split: str, where: str) -> dict[str, Any]:
    """Return the Parquet row of one record; `where` names it in errors. Raises RecordError if it is malformed."""
    if not isinstance(record, dict):
        raise RecordError(f"{where} is not an object")
    for field in REQUIRED:
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise RecordError(f"{where}: field {field!r} is missing or empty")
    kind, source = record["kind"], record["dataset"]
    truth = record.get("tests" if kind == "code" else "answer")
    if truth is None or str(truth).strip() in ("", "-"):
        raise RecordError(f"{where}: field {'tests' if kind == 'code' else 'answer'!r} is missing, so nothing could be verified")
    prompt, description = record["prompt"], record.get("description") or ""
    if source == "livecodebench":  # the bare function is asked for, not the method
        prompt, description = prompt.replace("(self, ", "("), description.replace("(self, ", "(")
    system = record.get("system")
    if not isinstance(system, str | None):
        raise RecordError(f"{where}: field 'system' is {system!r:.40}, neither text nor null")
    elo, prior = (_number(record, field, where) for field in ("elo", "achievement_prior"))
    messages = [{"role": "user", "content": prompt}]
    return {
        "prompt": [{"role": "system", "content": system}, *messages] if system is not None else messages,
        "system": system,
        "data_source": source,
        "ability": kind,
        "reward_model": {"style": kind, "ground_truth": truth if isinstance(truth, str) else json.dumps(truth)},
        "extra_info": {
            "split": split,
            "index": str(record.get("idx", "")),
            "description": description,
            "problem": prompt,
            "elo": None if elo is None else int(elo),
            "achievement_prior": (prior or 0.0) if split == "train" else 0.0,
        },
    }


def _number(record: dict[str, Any], field: str, where: str) -> float | None:
    """Return a numeric field; None where it is missing, null or the published "-"."""
    value = record.get(field)
    if value is None or value == "-":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(f"{where}: field {field!r} is {value!r:.40}, not a number")
    return float(value)


def write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows to a Parquet file (zstd), whole or not at all; return how many."""
    partial = path.with_name(path.name + ".partial")
    count, group = 0, []
    try:
        with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
            for row in rows:
                group.append(row)
                count += 1
                if len(group) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                    group = []
            if group:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def convert(source: Path, target: Path, split: str) -> int:
    """Convert a file of JSON records to Parquet; return the number of rows. Raises RecordError for a malformed record."""
    records = track(read_records(source), description=source.name, transient=True, disable=not sys.stdout.isatty())
    return write_parquet((to_row(record, split, f"{source}: record {n}") for n, record in records), target)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_source", type=Path, required=True, help="folder with train.json and test.json")
    parser.add_argument("--output_dir", type=Path, help="where to write; default: the same folder")
    options = parser.parse_args(arguments)
    folder: Path = options.data_source
    found = [split for split in ("train", "test") if (folder / f"{split}.json").is_file()]
    if not found:
        print(f"error: {folder} holds neither train.json nor test.json", file=sys.stderr)
        return 2
    output = options.output_dir or folder
    output.mkdir(parents=True, exist_ok=True)
    for split in found:
        source, target = folder / f"{split}.json", output / f"{split}.parquet"
        try:
            count = convert(source, target, split)
        except RecordError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{target}: {count} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
