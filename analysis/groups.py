"""Candidate rows as the trainer's groups, so that its own selection and renderer work on them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.rows import Fields, Row, read_jsonl, require
from trainer.errors import UserError
from trainer.types import Group, Outcome, Prompt, Rollout, Verdict

CANDIDATE: Fields = {
    "prompt_id": str,
    "uid": str,
    "prompt": str,
    "response_id": str,
    "response_text": str,
    "reward": float,
    "success": bool,
    "summary_text_effective": str,
    "summary_has_tag": bool,
    "summary_is_fallback": bool,
    "feedback_text": (str, type(None)),
    "has_feedback": bool,
    "difficulty_bucket": str,
}
SUCCESS = 0.5  # between the rewards given here: 1 for what the rows call a success, 0 for what they do not


@dataclass(frozen=True)
class Candidates:
    """The candidate rows of one prompt in one step, as they stand in the file; `where` is the first one's place."""

    where: str
    rows: list[Row]

    @property
    def prompt_id(self) -> str:
        return self.rows[0]["prompt_id"]


def read_candidates(path: Path | str) -> list[Candidates]:
    """Read candidate_responses.jsonl, of either project, and return its groups in file order.

    Raises UserError for a missing field, a response that stands there twice, and prompts that share a prompt_id.
    """
    groups: dict[str, Candidates] = {}
    responses: dict[str, str] = {}
    for where, row in read_jsonl(path, CANDIDATE):
        if row["response_id"] in responses:
            raise UserError(f"{where}: response {row['response_id']!r} stood already at {responses[row['response_id']]}.")
        responses[row["response_id"]] = where
        group = groups.setdefault(row["prompt_id"], Candidates(where, []))
        if group.rows and row["prompt"] != group.rows[0]["prompt"]:
            raise UserError(f"{where}: another prompt than at {group.where} under the same prompt_id {row['prompt_id']!r}.")
        group.rows.append(row)
    return list(groups.values())


def as_group(candidates: Candidates) -> Group | None:
    """Return the trainer's group of candidates, rollouts in row order; None if the messages of its prompt cannot be told.

    Verdicts hold reward 1 for successes and 0 for failures, whatever the reward was: the rows say which they are.
    """
    first = candidates.rows[0]
    messages = messages_of(first, candidates.where)
    if messages is None:
        return None
    rows = candidates.rows
    return Group(
        Prompt(first["uid"], first.get("data_source") or "", messages),
        [Rollout(row["response_text"], finished=row.get("finished") is not False) for row in rows],
        [
            Verdict(
                Outcome.PASS if row["success"] else Outcome.FAIL,
                float(row["success"]),
                float(row["success"]),
                feedback=row["feedback_text"] or "" if row["has_feedback"] else "",
            )
            for row in rows
        ],
    )


def messages_of(row: Row, where: str) -> list[Mapping[str, str]] | None:
    """Return the chat messages of a candidate's prompt: its own, or those its flattened text shows beyond doubt, else None."""
    if row.get("messages") is not None:
        require(row, where, {"messages": list})
        if not row["messages"]:
            raise UserError(f"{where}: messages is empty.")
        for message in row["messages"]:
            if not isinstance(message, dict):
                raise UserError(f"{where}: a message is {message!r:.60}, which is no object.")
            require(message, f"{where}, messages", {"role": str, "content": str})
        return row["messages"]
    return unflatten(row["prompt"])


_HEADER = re.compile(r"\nassistant\n(?:<think>\s*(?:</think>\s*)?)?\Z")
_TURN = re.compile(r"\n(system|user|assistant)\n")


def unflatten(text: str) -> list[dict[str, str]] | None:
    """Return the system and user messages of a prompt decoded without special tokens, as ChatML leaves it:

    "system\\n...\\nuser\\n...\\nassistant\\n", the system part optional, a think block after the header allowed. None for
    anything else, several turns and contents with such lines of their own included: they could be read in two ways.
    """
    header = _HEADER.search(text)
    if header is None:
        return None
    parts: list[Any] = _TURN.split("\n" + text[: header.start()])
    if parts[0] or parts[1::2] not in (["system", "user"], ["user"]):
        return None
    return [{"role": role, "content": content} for role, content in zip(parts[1::2], parts[2::2], strict=True)]
