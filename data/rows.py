"""The Parquet row of a record: the published columns (behaviour 1.5) with the same types whatever the source, and `uid`."""

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.records import RecordError, Skip, load_tests, named, number_of
from data.sources.prompts import with_right_count
from data.writing import whole
from trainer import rewards
from trainer.errors import UserError
from trainer.uid import content_uid

REQUIRED = ("kind", "dataset", "prompt")
ROWS_PER_GROUP, CHARACTERS_PER_GROUP = 1024, 1 << 24  # whichever comes first: tests may take megabytes a row
SCHEMA = pa.schema(
    [
        ("uid", pa.large_string()),
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


def to_row(record: dict[str, Any], split: str, where: str, *, published: bool = False) -> dict[str, Any]:
    """Return the Parquet row of one record.

    Args:
        split: "train" or "test".
        where: names the record in errors.
        published: leave the system prompt of two-option questions as it is.

    Raises:
        RecordError: for a malformed record. Skip: for one that cannot be judged: code without a test, or a gold answer that
            the verifier of its source cannot read.
    """
    if not isinstance(record, dict):
        raise RecordError(f"{where} is not an object")
    with named(where, record):
        return _row(record, split, published)


def _row(record: dict[str, Any], split: str, published: bool) -> dict[str, Any]:
    for field in REQUIRED:
        if not isinstance(record.get(field), str) or not record[field].strip():
            raise RecordError(f"field {field!r} is missing or empty")
    kind, source, prompt = record["kind"], record["dataset"], record["prompt"]
    truth, description = _truth(record, kind), record.get("description") or ""
    if not isinstance(description, str):
        raise RecordError(f"field 'description' is {description!r:.40}, neither text nor null")
    for field in ("kind", "dataset", "prompt", "description", "system", "answer", "tests"):
        if isinstance(record.get(field), str) and not _is_utf8(record[field]):
            raise RecordError(f"field {field!r} holds half a surrogate pair, which UTF-8 cannot write: {record[field]!a:.60}")
    if source == "livecodebench":  # the bare function is asked for, not the method
        prompt, description = prompt.replace("(self, ", "("), description.replace("(self, ", "(")
    system = record.get("system")
    if not isinstance(system, str | None):
        raise RecordError(f"field 'system' is {system!r:.40}, neither text nor null")
    if system and source == "sciknoweval" and not published and has_two_options(prompt):
        system = with_right_count(system, "AB")
    elo, prior = (number_of(record, field) for field in ("elo", "achievement_prior"))
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    return {
        "uid": content_uid(source, messages, truth),
        "prompt": messages,
        "system": system,
        "data_source": source,
        "ability": kind,
        "reward_model": {"style": kind, "ground_truth": truth},
        "extra_info": {
            "split": split,
            "index": str(record.get("idx", "")),
            "description": description,
            "problem": prompt,
            "elo": None if elo is None else int(elo),
            "achievement_prior": (prior or 0.0) if split == "train" else 0.0,
        },
    }


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _truth(record: dict[str, Any], kind: str) -> str:
    field = "tests" if kind == "code" else "answer"
    truth = record.get(field)
    if truth is None or str(truth).strip() in ("", "-"):
        raise RecordError(f"field {field!r} is missing, so nothing could be verified")
    text = truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)
    if kind == "code":
        load_tests(truth)
    else:
        _check_gold(record["dataset"], text)
    return text


def _check_gold(source: str, truth: str) -> None:
    """Raise Skip for a gold answer that the verifier of the source could not read. A source of one's own is not checked."""
    try:
        module = rewards.entry_of(source).split(":")[0]
    except UserError:
        return
    check = getattr(importlib.import_module(f"trainer.rewards.{module}"), "check_gold", None)
    try:
        if check:
            check(truth)
    except ValueError:
        raise Skip(f"a gold answer that the verifier of {source} cannot read") from None


def has_two_options(prompt: str) -> bool:
    """Whether the options at the end of a SciKnowEval prompt are A and B only."""
    return bool(re.search(r"\nA: .*\nB: ", prompt, re.DOTALL)) and "\nC: " not in prompt


def write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows to a Parquet file (zstd), whole or not at all; return how many."""
    with whole(path) as (partial,):
        return write_rows(rows, partial)


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write rows to a Parquet file in groups: memory holds one; return how many rows."""
    count, size, group = 0, 0, []
    # statistics of texts are of no use, and the writer would hold those of every group until the end
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_statistics=False) as writer:
        for row in rows:
            group.append(row)
            count += 1
            size += len(row["reward_model"]["ground_truth"]) + sum(len(message["content"]) for message in row["prompt"])
            if len(group) == ROWS_PER_GROUP or size >= CHARACTERS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))
    return count


__all__ = ["SCHEMA", "RecordError", "Skip", "to_row", "write_parquet"]
