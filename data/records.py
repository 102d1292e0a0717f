"""The record: one JSON object per problem, with the same keys whatever the source (behaviour 1.2, 1.7).

`tests` of a code record is a JSON string (behaviour 1.3): `inputs`, `outputs`, `testtype`, `fn_name`, `time_limit`, and
`public`, how many of them, counted from the first, are public: a source without public tests leaves the key out.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

FIELDS = ("idx", "kind", "dataset", "answer", "elo", "prompt", "description", "tests", "embedding", "system", "contest_date")
GREATEST = 1 << 53  # below it floats are exact
TESTTYPES = ("stdin", "functional", "code")


class RecordError(Exception):
    """A record or row that cannot be used; names file, record and field."""


class Skip(Exception):
    """A row that is left out and counted, for a documented reason: the message."""


@contextmanager
def named(place: str, row: Mapping[str, Any]) -> Iterator[None]:
    """Name the record in the errors of a conversion, also in those that a value of an unforeseen type ends in."""
    try:
        yield
    except RecordError as error:
        raise RecordError(f"{place}: {error}") from None
    except KeyError as error:
        raise RecordError(f"{place}: field {error} is missing (it has {', '.join(row)})") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(f"{place}: cannot be converted ({type(error).__name__}: {error})") from None


def make_record(
    kind: str,
    dataset: str,
    prompt: str,
    *,
    description: str,
    answer: str | None = None,
    tests: str | None = None,
    elo: float | None = None,
    system: str | None = None,
    contest_date: str | None = None,
) -> dict[str, Any]:
    """Return a record with every key in its order; `-` stands for an absent answer or tests, null for an absent rest.

    `idx` and `embedding` are filled in by the writer. The description gets the published closing sentence.
    """
    return {
        "idx": 0,
        "kind": kind,
        "dataset": dataset,
        "answer": "-" if answer is None else answer,
        "elo": elo,
        "prompt": prompt,
        "description": f"{description} The solution will be evaluated in a {kind} environment.",
        "tests": "-" if tests is None else tests,
        "embedding": [],
        "system": system,
        "contest_date": contest_date,
    }


def text_of(row: Mapping[str, Any], field: str) -> str:
    """Return a field that must hold text. Raises RecordError naming the field and what is there."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"field {field!r} is {value!r:.60}, where text is needed")
    return value


def number_of(row: Mapping[str, Any], field: str) -> float | None:
    """Return a numeric field; None where it is missing, null or the published "-". Raises RecordError otherwise."""
    value = row.get(field)
    if value is None or value == "-":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < GREATEST:
        raise RecordError(f"field {field!r} is {value!r:.40}, not a number below 2^53")
    return float(value)


def seconds_of(value: Any, default: float) -> float:
    """Return a time limit: a number, or the number a text begins with ("2 seconds"); else the default (behaviour A.2)."""
    if isinstance(value, str) and value.strip():
        try:
            value = float(value.split()[0])
        except ValueError:
            return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return default
    return float(value)


def dump_tests(
    inputs: Sequence[Any], outputs: Sequence[Any], testtype: str, *, fn_name: str = "", time_limit: float, public: int | None = None
) -> str:
    """Return the tests as the JSON string of a record. Raises Skip if there are none."""
    if not inputs:
        raise Skip("no tests")
    tests = {"inputs": list(inputs), "outputs": list(outputs), "testtype": testtype, "fn_name": fn_name, "time_limit": time_limit}
    return json.dumps(tests if public is None else {**tests, "public": public}, ensure_ascii=False)


def load_tests(text: Any) -> dict[str, Any]:
    """Read the tests of a record and check their shape. Raises RecordError naming the field, Skip if there is no test."""
    try:
        tests = json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError as error:
        raise RecordError(f"field 'tests' is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(tests, dict):
        raise RecordError(f"field 'tests' is {tests!r:.40}, not an object")
    for field in ("inputs", "outputs"):
        if not isinstance(tests.get(field), list):
            raise RecordError(f"field 'tests.{field}' is {tests.get(field)!r:.40}, not a list")
    if len(tests["inputs"]) != len(tests["outputs"]):
        raise RecordError(f"field 'tests' has {len(tests['inputs'])} inputs but {len(tests['outputs'])} outputs")
    if tests.get("testtype") not in TESTTYPES:
        raise RecordError(f"field 'tests.testtype' is {tests.get('testtype')!r:.40}; it must be one of {', '.join(TESTTYPES)}")
    _check_by_type(tests)
    public = tests.get("public")
    if public is not None and (isinstance(public, bool) or not isinstance(public, int) or not 0 <= public <= len(tests["inputs"])):
        raise RecordError(f"field 'tests.public' is {public!r:.40}, not a count of the {len(tests['inputs'])} tests")
    if not tests["inputs"]:
        raise Skip("no tests")
    return tests


def _check_by_type(tests: Mapping[str, Any]) -> None:
    name, limit = tests.get("fn_name"), tests.get("time_limit")
    if tests["testtype"] == "functional" and (not isinstance(name, str) or not name.strip()):
        raise RecordError(f"field 'tests.fn_name' is {name!r:.40}; functional tests need the name of a function")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf):
        raise RecordError(f"field 'tests.time_limit' is {limit!r:.40}, neither seconds nor null")
    texts = {"stdin": ("inputs", "outputs"), "code": ("inputs",), "functional": ()}[tests["testtype"]]
    for field in texts:
        others = [value for value in tests[field] if not isinstance(value, str)]
        if others:
            raise RecordError(f"field 'tests.{field}' holds {others[0]!r:.40}, where text is needed")


def choose_tests(tests: Mapping[str, Any], chosen: Sequence[int]) -> dict[str, Any]:
    """Return the tests at the positions `chosen` (ascending), every other key as it is, `public` counted anew."""
    part = {**tests, "inputs": [tests["inputs"][i] for i in chosen], "outputs": [tests["outputs"][i] for i in chosen]}
    if tests.get("public") is not None:
        part["public"] = sum(i < tests["public"] for i in chosen)
    return part
