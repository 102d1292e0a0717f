"""Sources that are records already: tool use of the SDPO repository, lasgroup/verifiable-corpus (behaviour 1.2, 1.7)."""

import json
from typing import Any

from data.records import RecordError, load_tests, number_of, text_of
from data.sources.base import Options, Row, Source

SDPO_FILES = "https://raw.githubusercontent.com/lasgroup/SDPO/main/datasets"


def as_record(row: Row, options: Options) -> dict:
    """Return a record with our keys and types, its texts untouched."""
    kind, dataset, prompt = (text_of(row, field) for field in ("kind", "dataset", "prompt"))
    tests, answer = ("-" if row.get(field) in (None, "") else row[field] for field in ("tests", "answer"))
    if kind == "code":
        load_tests(tests)
    elif not isinstance(answer, str) or answer == "-":
        raise RecordError(f"field 'answer' is {answer!r:.40}, where text is needed")
    record: dict[str, Any] = {
        "idx": 0,
        "kind": kind,
        "dataset": dataset,
        "answer": answer,
        "elo": number_of(row, "elo"),
        "prompt": prompt,
        "description": row.get("description") or "",
        "tests": tests,
        "embedding": list(row.get("embedding") or []),
        "system": row.get("system"),
        "contest_date": row.get("contest_date"),
    }
    return record


def tooluse(row: Row, options: Options) -> dict:
    """Return a tool-use record, its gold calls checked: a JSON list of {Action, Action_Input (a JSON text)}."""
    record = as_record(row, options)
    try:
        calls = json.loads(record["answer"])
    except json.JSONDecodeError as error:
        raise RecordError(f"field 'answer' is not JSON ({error.msg} at character {error.pos})") from None
    good = isinstance(calls, list) and calls and all(isinstance(c, dict) and {"Action", "Action_Input"} <= c.keys() for c in calls)
    if not good:
        raise RecordError(f"field 'answer' is {record['answer']!r:.60}, not a list of calls with Action and Action_Input")
    return record


SOURCES = (
    Source(
        name="tooluse",
        dataset="tooluse",
        hub="",
        columns=(),
        convert=tooluse,
        split="train",
        splits=("train", "test"),
        urls={split: f"{SDPO_FILES}/tooluse/{split}.json" for split in ("train", "test")},
    ),
    Source(
        name="lasgroup/verifiable-corpus",
        dataset="",
        hub="lasgroup/verifiable-corpus",
        columns=(),
        convert=as_record,
        split="train",
        category=lambda row: row["kind"],
    ),
)
