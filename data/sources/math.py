"""Problems with a final answer in \\boxed{}: AIME, MATH500, AMC, GSM8K, HMMT, DeepMath (behaviour 1.2, A.3)."""

import functools
import re
from typing import Any

from data.records import RecordError, Skip, make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source

GSM8K_ANSWER = re.compile(r"####([^\n]*)\s*\Z")
NUMBER = re.compile(r"[-+]?\d*\.?\d+")


def convert(dataset: str, question: str, answer: str, row: Row, options: Options) -> dict:
    """Return the record of a row whose problem is in field `question` and whose answer is in field `answer`."""
    problem = text_of(row, question)
    gold = _gold(row.get(answer), answer)
    if dataset == "gsm8k":
        gold = gsm8k_answer(gold)
    elif answer == "solution":
        gold = unboxed(gold)
    prompt = prompts.published_math if options.published_prompts else prompts.math
    return make_record("math", dataset, prompt(problem), description=problem, answer=gold)


def _gold(value: Any, field: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # AMC answers are stored as 27.0
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise RecordError(f"field {field!r} is {value!r:.60}, neither text nor a number")
    gold = "" if value is None else str(value).strip()
    if not gold:
        raise Skip("no gold answer")
    return gold


def gsm8k_answer(solution: str) -> str:
    """Return the number after `####`, its sign kept and without thousands separators or a currency sign."""
    found = GSM8K_ANSWER.search(solution)
    if not found:
        raise RecordError(f"field 'answer' has no closing line '#### number' (it ends {solution[-40:]!r})")
    number = re.sub(r"[,$\s]", "", found[1])
    if not NUMBER.fullmatch(number):
        raise RecordError(f"field 'answer' closes with {found[1].strip()!r:.40}, not with a number")
    return number


def unboxed(solution: str) -> str:
    """Return what stands in the `\\boxed{}` that the text is; the text itself if it is none."""
    found = re.fullmatch(r"\\boxed\{(.*)\}", solution, re.DOTALL)
    gold = (found[1] if found else solution).strip()
    if not gold:
        raise Skip("no gold answer")
    return gold


def _source(name: str, dataset: str, question: str = "problem", answer: str = "answer", **more: Any) -> Source:
    made = functools.partial(convert, dataset, question, answer)
    return Source(**{"name": name, "dataset": dataset, "hub": name, "columns": (question, answer), "convert": made, **more})


SOURCES = (
    _source("math-ai/aime24", "aime24", answer="solution"),
    _source("math-ai/aime25", "aime25"),
    _source("math-ai/math500", "math500"),
    _source("math-ai/amc23", "amc23", question="question"),
    _source("openai/gsm8k", "gsm8k", question="question", config="main", splits=("train", "test")),
    _source("MathArena/hmmt_feb_2025", "hmmt25_feb", split="train"),
    _source("MathArena/hmmt_nov_2025", "hmmt25_nov", split="train"),
    _source("zwhe99/DeepMath-103K", "deepmath", question="question", answer="final_answer", split="train", recognised=True),
)
