"""The published layout of teacher contexts, for results that are to be compared with published ones (behaviour 8.2).

Peers are pasted behind the flattened training prompt, so after the assistant's header, without a chat template; the
first responses by name are shown, not random ones; summaries of other prompts are always those of the first other
prompt and are called successful whatever they are. Training shows none of this.
"""

import hashlib
import random
from collections.abc import Sequence
from functools import cache

from analysis.conditions import SECTIONS, Condition
from analysis.groups import Candidates
from analysis.rows import Row
from trainer import config
from trainer.errors import UserError

_SUMMARY = "\nSummary of another {kind} solution:\n\n{text}\n\n"


@cache
def _templates() -> dict[str, str]:
    """Return the published templates: those of training, each with the line breaks its YAML form loses."""
    distill = config.load("sdpo").actor_rollout_ref.actor.self_distillation
    names = ("solution_template", "another_solution_template", "failure_solution_template", "feedback_template")
    closing = distill.reprompt_template.rpartition("}")[2]
    return {"closing": closing + "\n", **{name: getattr(distill, name) + "\n\n" for name in names}}


def variants(condition: Condition, groups: Sequence[Candidates]) -> list[Row]:
    """Return the rows of a condition for all candidates, prompts in file order, responses in the order of their names."""
    if condition.as_trained:
        raise UserError(f"condition {condition.name!r} is what training shows; --legacy-contexts shows something else.")
    by_prompt = {group.prompt_id: sorted(group.rows, key=lambda row: row["response_id"]) for group in groups}
    return [_variant(condition, i, rows, by_prompt) for rows in by_prompt.values() for i in range(len(rows))]


def _variant(condition: Condition, i: int, rows: Sequence[Row], by_prompt: dict[str, list[Row]]) -> Row:
    own = rows[i]
    others = [row for row in rows if row is not own]
    seen = others if condition.dont_reprompt_on_self_success else rows
    successes, failures = [row for row in seen if row["success"]], [row for row in others if not row["success"]]
    primary = successes[0] if successes else None
    solution = primary if condition.include_solution else None
    another = next((row for row in others if row["success"] and row is not primary), None) if condition.include_another_solution else None
    failure = next(iter(failures), None) if condition.include_failure_solution else None
    shown = [row for row in (solution, another) if row], [failure] if failure else []
    if condition.peer_control:
        shown = _controlled(condition.peer_control, own, others, min(2, len(successes)), min(1, len(failures)))
    feedback = condition.include_feedback and own["has_feedback"] and not (condition.feedback_only_without_solution and solution)
    summaries = _summaries(condition, own, others, primary, by_prompt) if condition.include_summary and primary else []
    if condition.force_raw_prompt:
        shown, feedback, summaries = ([], []), False, []

    sections = {
        "solution": shown[0][:1],
        "another_solution": shown[0][1:],
        "failure_solution": shown[1],
        "feedback": [own] if feedback else [],
        "summary": summaries,
    }
    if condition.include_another_solution and not condition.include_solution and not condition.peer_control:
        sections |= {"solution": [], "another_solution": shown[0]}
    text = _text(condition, own, sections)
    key = f"{condition.name}|{own['prompt_id']}|{own['response_id']}"
    kinds = {"feedback": "feedback", "summary": "summary"}
    return {
        "variant_id": hashlib.sha1(key.encode()).hexdigest()[:20],
        "condition": condition.name,
        "prompt_id": own["prompt_id"],
        "response_id": own["response_id"],
        "uid": own["uid"],
        "reward": own["reward"],
        "success": own["success"],
        "difficulty_bucket": own["difficulty_bucket"],
        "variant_spec": condition.spec(),
        "sections_used": {name: bool(sections[name]) for name in SECTIONS},
        "evidence_ids": [f"{row['response_id']}::{kinds.get(name, 'response_full')}" for name in SECTIONS for row in sections[name]],
        "primary_solution_response_id": None if primary is None else primary["response_id"],
        "summary_sources": [summary_source(row) for row in summaries],
        "assembled_context_text": text,
        "assembled_context_length_chars": len(text),
    }


def summary_source(row: Row) -> Row:
    """Return how a row of variants names the response a summary comes from."""
    return {
        "source_response_id": row["response_id"],
        "success": row["success"],
        "summary_has_tag": row["summary_has_tag"],
        "summary_is_fallback": row["summary_is_fallback"],
    }


def _controlled(kind: str, own: Row, others: Sequence[Row], slots: int, failure_slots: int) -> tuple[list[Row], list[Row]]:
    """Return what stands in the slots for successes and for failures."""
    if kind == "random":
        seed = int(hashlib.sha1(f"{own['prompt_id']}|{own['response_id']}".encode()).hexdigest(), 16) % 2**32
        order = list(others)
        random.Random(seed).shuffle(order)
        return order[:slots], order[slots : slots + failure_slots]
    best = sorted(others, key=lambda row: (-row["reward"], row["response_id"]))[: slots + failure_slots]
    return [row for row in best if row["success"]], [row for row in best if not row["success"]]


def _summaries(condition: Condition, own: Row, others: Sequence[Row], primary: Row, by_prompt: dict[str, list[Row]]) -> list[Row]:
    if condition.summary_control:
        away = min((name for name in by_prompt if name != own["prompt_id"]), default=None)
        return by_prompt[away][: condition.summary_k] if away is not None else []
    pool = [row for row in others if row is not primary and (row["success"] or condition.summary_from_all)]
    return pool[: condition.summary_k]


def _text(condition: Condition, own: Row, sections: dict[str, list[Row]]) -> str:
    if not any(sections.values()) and not condition.force_reprompt:
        return own["prompt"]
    templates = _templates()

    def said(name: str, placeholder: str, section: str) -> str:
        return "".join(templates[name].format(**{placeholder: row["response_text"]}) for row in sections[section])

    feedback = templates["feedback_template"].format(feedback_raw=own["feedback_text"]) if sections["feedback"] else ""
    summaries = "".join(
        _SUMMARY.format(
            kind="successful" if row["success"] or condition.summary_control else "unsuccessful", text=row["summary_text_effective"]
        )
        for row in sections["summary"]
    )
    return (
        own["prompt"]
        + said("solution_template", "successful_previous_attempt", "solution")
        + summaries
        + said("another_solution_template", "another_successful_attempt", "another_solution")
        + said("failure_solution_template", "failed_attempt", "failure_solution")
        + feedback
        + templates["closing"]
    )
