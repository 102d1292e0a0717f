"""GPQA diamond (Idavidrein/gpqa): the right option among three wrong ones, in an order drawn from the question (behaviour 1.2, A.4)."""

import random

from data.records import make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source

WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def convert(row: Row, options: Options) -> dict:
    question = text_of(row, "Question").strip()
    right, *wrong = (text_of(row, field).strip() for field in ("Correct Answer", *WRONG))
    answers = [right, *wrong]
    # from the question, not from the row's place: the order of a question's options is the same in any file
    order = random.Random(f"{options.seed}:{question}").sample(range(len(answers)), len(answers))
    prompt = prompts.published_gpqa if options.published_prompts else prompts.gpqa
    return make_record(
        "gpqa",
        "gpqa",
        prompt(question, [answers[i] for i in order]),
        description=question,
        answer=prompts.LETTERS[order.index(0)],
    )


SOURCES = (
    Source(
        name="Idavidrein/gpqa-D",
        dataset="gpqa",
        hub="Idavidrein/gpqa",
        columns=("Question", "Correct Answer", *WRONG, "High-level domain"),
        convert=convert,
        split="train",
        config="gpqa_diamond",
        pattern="gpqa_diamond*",
        gated=True,
        category=lambda row: row["High-level domain"],
        recognised=True,
    ),
)
