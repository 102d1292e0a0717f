"""MMLU-Pro (TIGER-Lab/MMLU-Pro): up to ten options, lettered from A as they come (behaviour 1.2, A.4)."""

from data.records import RecordError, make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source


def convert(row: Row, options: Options) -> dict:
    question, category, answer = text_of(row, "question").strip(), text_of(row, "category"), text_of(row, "answer").strip()
    choices = row.get("options")
    if not isinstance(choices, list) or not 2 <= len(choices) <= 10 or not all(isinstance(choice, str) for choice in choices):
        raise RecordError(f"field 'options' is {choices!r:.60}, not a list of 2 to 10 texts")
    letters = list(prompts.LETTERS[: len(choices)])
    if answer not in letters:
        raise RecordError(f"field 'answer' is {answer!r:.20}, but the options are {letters[0]} to {letters[-1]}")
    index = row.get("answer_index")
    if index is not None and letters.index(answer) != index:
        raise RecordError(f"field 'answer' is {answer!r}, but field 'answer_index' is {index}")
    prompt = prompts.published_mmlu_pro if options.published_prompts else prompts.mmlu_pro
    return make_record("mmlu_pro", "mmlu_pro", prompt(question, choices, category), description=question, answer=answer)


SOURCES = (
    Source(
        name="TIGER-Lab/MMLU-Pro",
        dataset="mmlu_pro",
        hub="TIGER-Lab/MMLU-Pro",
        columns=("question", "options", "answer", "answer_index", "category"),
        convert=convert,
        category=lambda row: row["category"],
        recognised=True,
    ),
)
