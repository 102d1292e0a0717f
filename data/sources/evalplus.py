"""HumanEval+ and MBPP+ (evalplus): one test, a Python source that runs after the solution (behaviour 1.3, 1.6).

Rows of the hub sets and of EvalPlus's own JSON-lines files are both read; their fields differ.
"""

import ast
import re

from data.records import RecordError, dump_tests, make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source

TIME_LIMIT = 5


def _record(dataset: str, problem: str, description: str, test: str, function: str, options: Options) -> dict:
    try:
        ast.parse(test)
    except SyntaxError as error:
        raise RecordError(f"field 'test' is not Python ({error.msg}, line {error.lineno})") from None
    prompt = prompts.published_code if options.published_prompts else prompts.code
    return make_record(
        "code",
        dataset,
        prompt(problem, "code", TIME_LIMIT),
        description=description,
        # nothing is printed: the test passes if it ends without an exception
        tests=dump_tests([test], [""], "code", fn_name=function, time_limit=TIME_LIMIT),
    )


def humaneval(row: Row, options: Options) -> dict:
    stub, function = text_of(row, "prompt"), text_of(row, "entry_point")
    test = text_of(row, "test").rstrip()
    if not re.search(rf"^check\({re.escape(function)}\)\s*$", test, re.MULTILINE):
        test += f"\n\ncheck({function})"
    problem = f"Complete this function and give it whole, imports included:\n\n```python\n{stub.rstrip()}\n```"
    return _record("humanevalplus", problem, docstring(stub, function), test + "\n", function, options)


def docstring(stub: str, function: str) -> str:
    """Return the docstring of a function up to its first example (behaviour A.6); "" if there is none."""
    found = re.search(rf"def\s+{re.escape(function)}\b.*?(\"\"\"|''')(.*?)\1", stub, re.DOTALL)
    return found[2].split(">>>")[0].strip() if found else ""


def mbpp(row: Row, options: Options) -> dict:
    task = text_of(row, "prompt").strip()
    reference = row.get("code") or row.get("canonical_solution") or ""
    found = re.search(r"^def\s+(\w+)", reference, re.MULTILINE)
    function = row.get("entry_point") or (found[1] if found else None)
    if not function:
        raise RecordError("field 'code' defines no function, so the name to ask for is not known")
    test = "\n".join([*(row.get("test_imports") or []), text_of(row, "test" if row.get("test") else "assertion")])
    problem = f"{task}\n\nThe function must be called `{function}`."
    return _record("mbppplus", problem, task, test.rstrip() + "\n", function, options)


SOURCES = (
    Source(
        name="evalplus/humanevalplus",
        dataset="humanevalplus",
        hub="evalplus/humanevalplus",
        columns=("prompt", "entry_point", "test"),
        convert=humaneval,
    ),
    Source(
        name="evalplus/mbppplus",
        dataset="mbppplus",
        hub="evalplus/mbppplus",
        columns=("prompt", "code", "canonical_solution", "entry_point", "test_imports", "test", "assertion"),
        convert=mbpp,
    ),
)
