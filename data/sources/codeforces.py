"""Codeforces problems: open-r1/codeforces (official tests) and Qwen/CodeElo (examples only) (behaviour 1.2, 1.3).

The examples are among the tests and marked public; the prompt leaves them out, as the published one does, so that they
cannot be answered by heart. Left out and counted are problems whose tests cannot decide: several answers are right
(a checker is needed), an interactor is needed, input comes from a file.
"""

from datetime import UTC, datetime
from typing import Any

from data.records import RecordError, Skip, dump_tests, make_record, number_of, seconds_of, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source

Section = tuple[str, Any]


def statement(title: str, limit: float, sections: list[Section]) -> str:
    """Return the problem as plain text with headings, empty sections left out."""
    head = f"# {title}\n\nTime limit per test: {limit:g} s"
    return "\n\n".join([head, *(f"## {name}\n\n{str(text).strip()}" for name, text in sections if text)])


def published_statement(title: str, limit: float, sections: list[Section]) -> str:
    """Return the problem as the published code renders it: HTML, the editorial included where there is one."""
    body = "".join(f"<h2>{name}</h2><div>{text}</div>" for name, text in sections if text)
    return f"<html><body><h1>{title}</h1><div>Time limit per test: {limit:g} s</div>{body}</body></html>"


def _record(dataset: str, row: Row, sections: list[Section], limit: float, tests: str, options: Options, date: str | None = None) -> dict:
    problem = (published_statement if options.published_prompts else statement)(text_of(row, "title"), limit, sections)
    return make_record(
        "code",
        dataset,
        (prompts.published_code if options.published_prompts else prompts.code)(problem, "stdin", limit),
        description=text_of(row, "description"),
        tests=tests,
        elo=number_of(row, "rating"),
        contest_date=date,
    )


def _pairs(row: Row, field: str) -> list[tuple[str, str]]:
    """Return (input, output) of a list of objects or of pairs."""
    pairs = []
    for test in row.get(field) or []:
        pair = (test.get("input"), test.get("output")) if isinstance(test, dict) else tuple(test) if isinstance(test, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RecordError(f"field {field!r} holds {test!r:.60}, not an input and an output")
        pairs.append(pair)
    return pairs


def codeforces(row: Row, options: Options) -> dict:
    if row.get("generated_checker"):
        raise Skip("several answers are right: needs a checker")
    if row.get("interaction_format"):
        raise Skip("interactive")
    if row.get("input_mode") not in (None, "stdio"):
        raise Skip("input from a file")
    examples = _pairs(row, "examples")
    known = {(given.strip(), wanted.strip()) for given, wanted in examples}
    official = [pair for pair in _pairs(row, "official_tests") if (pair[0].strip(), pair[1].strip()) not in known]
    if not official:
        raise Skip("no tests beyond the examples")
    limit = seconds_of(row.get("time_limit"), 1.0)
    inputs, outputs = zip(*examples, *official, strict=True)
    tests = dump_tests(inputs, outputs, "stdin", time_limit=limit, public=len(examples))
    sections = [("Description", text_of(row, "description")), ("Input", row.get("input_format")), ("Output", row.get("output_format"))]
    sections.append(("Note", row.get("note")))
    if options.published_prompts:
        sections.append(("Editorial", row.get("editorial")))
    start = number_of(row, "contest_start")  # seconds since 1970
    date = None if start is None else datetime.fromtimestamp(start, UTC).date().isoformat()
    return _record("codeforces", row, sections, limit, tests, options, date)


def code_elo(row: Row, options: Options) -> dict:
    if row.get("interaction"):
        raise Skip("interactive")
    examples = _pairs(row, "examples")
    limit = seconds_of((number_of(row, "time_limit_ms") or 0) / 1000, 1.0)
    tests = dump_tests([pair[0] for pair in examples], [pair[1] for pair in examples], "stdin", time_limit=limit, public=len(examples))
    sections = [
        ("Description", text_of(row, "description")),
        ("Input", row.get("input")),
        ("Output", row.get("output")),
        ("Note", row.get("note")),
    ]
    return _record("code_elo", row, sections, limit, tests, options)


SOURCES = (
    Source(
        name="open-r1/codeforces",
        dataset="codeforces",
        hub="open-r1/codeforces",
        columns=(
            *("title", "description", "input_format", "output_format", "interaction_format", "note", "editorial", "rating", "time_limit"),
            *("contest_start", "examples", "official_tests", "input_mode", "generated_checker"),
        ),
        convert=codeforces,
        splits=("train", "test"),
        config="verifiable",
        recognised=True,
    ),
    Source(
        name="Qwen/CodeElo",
        dataset="code_elo",
        hub="Qwen/CodeElo",
        columns=("title", "description", "input", "output", "interaction", "note", "rating", "time_limit_ms", "examples"),
        convert=code_elo,
        recognised=True,
    ),
)
