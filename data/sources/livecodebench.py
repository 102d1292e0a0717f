"""LiveCodeBench (livecodebench/code_generation_lite): public and private tests, contest dates (behaviour 1.2, 1.3).

The hub repository's main branch has a loading script, which `datasets` no longer runs, beside plain JSON-lines files;
those are read. Version 6 is its sixth file.
"""

import base64
import binascii
import io
import json
import pickle
import zlib
from datetime import datetime
from typing import Any

from data.records import RecordError, Skip, dump_tests, make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source
from data.sources.statement import describe

TIME_LIMIT = 6
V6 = ("2025-02-01", "2025-05-01")  # contest dates from, before: the published selection


_BROKEN = (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, TypeError, ValueError, LookupError, AttributeError)


class _TextOnly(pickle.Unpickler):
    """Unpickles texts, and looks up no class or function: a pickle from the net runs nothing here."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def decode_tests(text: str, field: str) -> list[dict[str, Any]]:
    """Return the tests in a field: JSON, or base64 of zlib of a pickled JSON text. Raises RecordError naming the field."""
    try:
        if not text.lstrip().startswith("["):
            text = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))).load()
        tests = json.loads(text)
    except _BROKEN as error:
        raise RecordError(f"field {field!r} cannot be decoded ({type(error).__name__}: {error})") from None
    if not isinstance(tests, list) or not all(isinstance(t, dict) and {"input", "output", "testtype"} <= t.keys() for t in tests):
        raise RecordError(f"field {field!r} does not hold tests with input, output and testtype")
    return tests


def signature_of(starter: str) -> str:
    """Return the signature in starter code as that of a plain function: the code is judged as one (behaviour A.5)."""
    head = "def " + starter.partition("def ")[2].split("Input\n")[0].strip()
    return head.replace("(self, ", "(", 1).replace("(self)", "()", 1)


def convert(row: Row, options: Options) -> dict:
    statement = text_of(row, "question_content").strip()
    tests = decode_tests(text_of(row, "public_test_cases"), "public_test_cases")
    public = len(tests)
    tests += decode_tests(text_of(row, "private_test_cases"), "private_test_cases")
    kinds = {test["testtype"] for test in tests}
    if len(kinds) > 1:
        raise Skip("tests of two kinds")
    starter, testtype = row.get("starter_code") or "", kinds.pop() if kinds else "stdin"
    dumped = dump_tests(
        [test["input"] for test in tests],
        [test["output"] for test in tests],
        testtype,
        fn_name=_function(row) if testtype == "functional" else "",
        time_limit=TIME_LIMIT,
        public=public,
    )
    published = options.published_prompts
    problem = statement
    if "def " in starter:
        head = signature_of(starter)
        problem += f"\n\n{head}" if published else f"\n\nSignature of the function:\n{head}"
    return make_record(
        "code",
        "livecodebench",
        (prompts.published_code if published else prompts.code)(problem, testtype, TIME_LIMIT),
        description=describe(statement),
        tests=dumped,
        contest_date=_date(row),
    )


def _function(row: Row) -> str:
    metadata = row.get("metadata") or "{}"
    try:
        values = json.loads(metadata) if isinstance(metadata, str) else metadata
    except json.JSONDecodeError as error:
        raise RecordError(f"field 'metadata' is not JSON ({error.msg})") from None
    name = values.get("func_name") if isinstance(values, dict) else None
    if not isinstance(name, str) or not name:
        raise RecordError(f"field 'metadata' is {metadata!r:.60}; functional tests need its func_name")
    return name


def _date(row: Row) -> str:
    """Return the day of the contest, YYYY-MM-DD: the `datasets` library makes a datetime of the text in the file."""
    date = row.get("contest_date")
    return date.date().isoformat() if isinstance(date, datetime) else text_of(row, "contest_date")[:10]


def _in_v6(row: Row) -> bool:
    return V6[0] <= _date(row) < V6[1]


_ROWS = {
    "dataset": "livecodebench",
    "hub": "livecodebench/code_generation_lite",
    "columns": ("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata", "contest_date"),
    "convert": convert,
    "recognised": True,
}
SOURCES = (
    Source(name="livecodebench/code_generation_lite-v6", data_files=("test6.jsonl",), pattern="test6.jsonl", keep=_in_v6, **_ROWS),
    Source(
        name="livecodebench/code_generation_lite",
        data_files=("test.jsonl", *(f"test{i}.jsonl" for i in range(2, 7))),
        **{**_ROWS, "recognised": False},
    ),
)
