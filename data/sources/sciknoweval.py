"""SciKnowEval (hicai-zju/SciKnowEval): level 3, multiple choice with two or four options, one domain each (behaviour 1.2, 1.7)."""

from data.records import RecordError, make_record, text_of
from data.sources import prompts
from data.sources.base import Options, Row, Source

DOMAINS = ("Biology", "Chemistry", "Material", "Physics")
TYPES = ("mcq-4-choices", "mcq-2-choices")


def convert(row: Row, options: Options) -> dict:
    question, answer, choices = text_of(row, "question"), text_of(row, "answerKey").strip(), row.get("choices")
    if not isinstance(choices, dict) or not all(isinstance(choices.get(key), list) for key in ("label", "text")):
        raise RecordError(f"field 'choices' is {choices!r:.60}, not lists `label` and `text`")
    labels = choices["label"]
    if len(labels) != len(choices["text"]) or len(labels) < 2:
        raise RecordError(f"field 'choices' has {len(labels)} labels and {len(choices['text'])} texts")
    if answer not in labels:
        raise RecordError(f"field 'answerKey' is {answer!r}, not one of the labels {', '.join(map(str, labels))}")
    published = options.published_prompts
    return make_record(
        "mcq",
        "sciknoweval",
        (prompts.published_sciknoweval if published else prompts.sciknoweval)(question, choices),
        description=question,
        answer=answer,
        elo=1500,  # a constant of the published records (behaviour A.8)
        system=prompts.PUBLISHED_SCIKNOWEVAL_SYSTEM if published else prompts.sciknoweval_system(labels),
    )


def _source(domain: str) -> Source:
    return Source(
        name=domain,
        dataset="sciknoweval",
        hub="hicai-zju/SciKnowEval",
        columns=("question", "choices", "answerKey", "type", "domain", "details"),
        convert=convert,
        spare_config="v2",
        keep=lambda row: row["domain"] == domain and (row["details"] or {}).get("level") == "L3" and row["type"] in TYPES,
    )


SOURCES = tuple(_source(domain) for domain in DOMAINS)
