"""Rows of JSON arrays, JSON lines, Parquet and CSV files, one at a time: memory does not grow with the file."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.records import RecordError

KINDS = (".parquet", ".jsonl", ".json", ".csv")
SPLITS = ("train", "test", "val", "dev")
PARQUET_ROWS = 64  # held at once; a row may carry megabytes of tests
CHUNK = 1 << 20
_DECODE = json.JSONDecoder().raw_decode


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) of a file, by its suffix; `place` names file and record or line for errors.

    Args:
        columns: of a Parquet file, the ones to read where they are there; all if empty.

    Raises:
        RecordError: for what cannot be read, naming the file and the line or record; for a file without a row.
    """
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    rows = _parquet(path, columns) if path.suffix == ".parquet" else _csv(path) if path.suffix == ".csv" else _json(path)
    empty = True
    for number, row in rows:
        empty = False
        yield f"{path}: record {number}", row
    if empty:
        raise RecordError(f"{path} holds no record")


def data_files(folder: Path, split: str, pattern: str | None = None, config: str | None = None, *, only: bool = False) -> list[Path]:
    """Return the data files of a split in a folder laid out as on the hub: in a folder named as the config, in data/, in it, or below.

    Those whose name begins with the split if there are any, else those whose name begins with none; of one kind only.
    `pattern` (of names) goes before. `only`: the source has no other split, so that files named after one will do.
    Raises RecordError if there is none.
    """
    searches = [(folder / (config or "data"), "*"), (folder / "data", "*"), (folder, "*"), (folder, "**/*")]
    for place, names in searches:
        for kind in KINDS:
            files = sorted(file for file in place.glob(names + kind) if not file.name.startswith("."))
            named = [file for file in files if pattern and file.match(pattern)]
            of_split = [file for file in files if file.name.startswith(split)]
            untold = [file for file in files if not file.name.startswith(SPLITS)]
            if chosen := named or of_split or untold or (files if only else []):
                return chosen
    raise RecordError(f"{folder} holds no data file of {split} ({', '.join(KINDS)})")


def _json(path: Path) -> Iterator[tuple[int | str, Any]]:
    """Yield (number, value) of a JSON array, whatever its layout, as `_array`, or of a file with one value a line (number = line)."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line.lstrip() for line in file if line.strip()), "")
        if first.startswith("["):
            yield from _array(path)
            return
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise RecordError(f"{path}: line {number} is not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None


def _array(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("<number from 1>, line <of its beginning>", value); exactly one comma between values, nothing after the array."""
    with path.open(encoding="utf-8-sig") as file:
        number, line, buffer, more = 0, 1, "", True

        def fill(size: int) -> None:
            nonlocal buffer, more
            read = file.read(size)
            buffer, more = buffer + read, bool(read)

        def take(length: int) -> None:
            nonlocal buffer, line
            line += buffer.count("\n", 0, length)
            buffer = buffer[length:]

        def peek() -> str:
            """Drop blanks, reading on as needed; return the next sign, "" at the end of the file."""
            while True:
                take(len(buffer) - len(buffer.lstrip(" \t\r\n")))
                if buffer or not more:
                    return buffer[:1]
                fill(CHUNK)

        def refuse(what: str) -> RecordError:
            return RecordError(f"{path}: line {line} {what}")

        peek()
        take(1)  # the bracket that opens
        while (sign := peek()) != "]":
            if number:
                if sign != ",":
                    raise refuse(f"has {sign!r} where a comma or the array's end is needed" if sign else "ends within the array")
                take(1)
                sign = peek()
            size = CHUNK
            while True:
                try:
                    value, end = _DECODE(buffer)
                    break
                except json.JSONDecodeError as error:
                    if not more:  # the value is not just cut by the end of the buffer
                        line += error.lineno - 1
                        raise refuse(f"is not JSON ({error.msg})" if sign else "ends within the array") from None
                    fill(size)
                    size *= 2
            while more and end == len(buffer):  # 12 may be the beginning of 123
                fill(CHUNK)
                value, end = _DECODE(buffer)
            number += 1
            begins = line
            take(end)
            yield f"{number}, line {begins}", value
        take(1)
        if rest := peek():
            raise refuse(f"has {rest!r} after the array's end")


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=present or None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} cannot be read as Parquet ({error})") from None


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(1 << 30)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from enumerate(csv.DictReader(file), 1)
    except (csv.Error, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read as CSV ({error})") from None
