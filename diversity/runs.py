"""Runs: what was sampled for each prompt, from candidate_responses.jsonl or rollout dumps, of this project or the published one.

A group is what one prompt got in one step. The same prompt has the same id in all runs: its `uid`; where a file has none,
`prompt_id`, or what the published preparation makes of the prompt's text (behaviour 8.1).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.rows import read_jsonl, require
from trainer.errors import UserError
from trainer.types import Outcome

SUCCESS = 1.0  # the reward from which a response counts as a success where a row does not say (behaviour 2, 9)
CANDIDATES = "candidate_responses.jsonl"


@dataclass(frozen=True)
class Response:
    """One response and what the verifier said of it."""

    id: str
    text: str
    reward: float
    success: bool


@dataclass(frozen=True)
class Group:
    """The responses one prompt got in one step, ordered by id. `bucket` is the file's difficulty bucket, None in a dump."""

    prompt_id: str
    prompt: str
    bucket: str | None
    step: int | None
    responses: Sequence[Response]


@dataclass(frozen=True)
class Run:
    """The groups of a run by prompt id, and what was left out of it: reason -> how many."""

    name: str
    groups: Mapping[str, Group]
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Row:
    """A row of either schema. `group` is what the file calls the group, `judged` is False where the verifier failed."""

    where: str
    schema: str
    prompt_id: str
    group: str
    prompt: str
    bucket: str | None
    step: int | None
    judged: bool
    response: Response


def read_run(name: str, path: Path, *, mix_steps: bool = False) -> Run:
    """Read a file, or a folder: its candidate_responses.jsonl if there is one, else all its *.jsonl.

    Of a prompt sampled at several steps the last step stands, since a group is one policy's; `mix_steps` takes all
    of them as one group. Responses that the verifier could not judge are neither right nor wrong: they are left out.

    Raises:
        UserError: with file and line, for a line that cannot be read, misses a field, has another schema than the line
            before it, or repeats a response.
    """
    rows: dict[str, list[_Row]] = {}
    left_out: Counter[str] = Counter()
    for row in _rows(files_of(path)):
        if not row.judged:
            left_out["responses the verifier could not judge"] += 1
            continue
        kept = rows.setdefault(row.prompt_id, [])
        if kept and not mix_steps and row.step != kept[0].step:
            if row.step is None or kept[0].step is None:
                raise UserError(f"{row.where}: of prompt {row.prompt_id} only some responses name their step (see {kept[0].where}).")
            older = row.step < kept[0].step
            left_out["responses of earlier steps"] += 1 if older else len(kept)
            if older:
                continue
            kept.clear()
        if kept and not mix_steps and row.group != kept[0].group:
            raise UserError(
                f"{row.where}: prompt {row.prompt_id} has a second group ({row.group}) of the same step, the first ({kept[0].group}) is at "
                f"{kept[0].where}: was this made from several runs? Give each as a --run of its own, or --mix-steps."
            )
        kept.append(row)
    if not rows:
        raise UserError(f"{path}: the verifier could judge none of its {left_out.total()} responses.")
    return Run(name, {prompt: _group(kept) for prompt, kept in sorted(rows.items())}, left_out)


def files_of(path: Path) -> list[Path]:
    """Return the files a run is read from, in the order of the numbers in their names."""
    if not path.is_dir():
        return [path]
    if (path / CANDIDATES).is_file():
        return [path / CANDIDATES]
    files = sorted(path.glob("*.jsonl"), key=lambda file: numeric(file.name))
    if not files:
        raise UserError(f"{path}: holds neither {CANDIDATES} nor any other *.jsonl.")
    return files


def numeric(text: str) -> tuple[list[str | int], str]:
    """Return a key that orders texts by the numbers in them: r2 before r10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", text))], text


def select(
    runs: Sequence[Run], *, least: int, most: int | None = None, intersect: bool = False, max_prompts: int | None = None
) -> list[Run]:
    """Return the runs without prompts of fewer than `least` responses, with what all runs have (`intersect`), capped.

    Caps come last, so that they cannot make runs differ: the first `max_prompts` prompts by id, of each the first `most`
    responses. Raises UserError if that leaves a run without any prompt.
    """
    enough = []
    for run in runs:
        groups = {prompt: group for prompt, group in run.groups.items() if len(group.responses) >= least}
        if not groups:
            raise UserError(
                f"{run.name}: none of its {len(run.groups)} prompts has {least} responses or more; --min-responses-per-prompt lowers that."
            )
        enough.append(_without(run, groups, f"prompts with fewer than {least} responses"))
    if intersect:
        common = set.intersection(*(set(run.groups) for run in enough))
        if not common:
            examples = ", ".join(f"{run.name} has {next(iter(run.groups))}" for run in enough)
            raise UserError(
                f"no prompt is in all runs ({examples}): were they sampled from the same data, and prepared the same way? "
                "A prompt's id is its uid, else its prompt_id, else the hash of its text."
            )
        enough = [
            _without(run, {prompt: group for prompt, group in run.groups.items() if prompt in common}, "prompts that not all runs have")
            for run in enough
        ]
    capped = []
    for run in enough:
        first = _without(run, dict(list(run.groups.items())[:max_prompts]), "prompts over --max-prompts")
        groups = {prompt: replace(group, responses=group.responses[:most]) for prompt, group in first.groups.items()}
        over = sum(len(group.responses) for group in first.groups.values()) - sum(len(group.responses) for group in groups.values())
        capped.append(Run(run.name, groups, first.left_out + Counter({"responses over --max-responses-per-prompt": over})))
    return capped


def _without(run: Run, groups: Mapping[str, Group], reason: str) -> Run:
    return Run(run.name, groups, run.left_out + Counter({reason: len(run.groups) - len(groups)}))


def _group(rows: Sequence[_Row]) -> Group:
    first: dict[str, _Row] = {}
    for row in rows:
        earlier = first.setdefault(row.response.id, row)
        if earlier is not row:
            raise UserError(
                f"{row.where}: response {row.response.id} of prompt {row.prompt_id} is there twice, first at {earlier.where}: "
                "was a file appended to itself? Each response may count once only."
            )
    last = rows[-1]
    responses = sorted((row.response for row in rows), key=lambda response: numeric(response.id))
    return Group(last.prompt_id, last.prompt, last.bucket, last.step, responses)


def _rows(files: Sequence[Path]) -> Iterator[_Row]:
    """Yield the rows of all files, which must be of one schema."""
    before: _Row | None = None
    numbers: Counter[tuple[str, int | None]] = Counter()
    for file in files:
        for where, row in read_jsonl(file):
            read = _candidate(where, row) if "response_text" in row else _dumped(where, row, numbers)
            if before and before.schema != read.schema:
                raise UserError(f"{where}: is {read.schema}, {before.where} is {before.schema}: a run is one or the other.")
            before = read
            yield read


def _candidate(where: str, row: Mapping[str, Any]) -> _Row:
    """Read a row of candidate_responses.jsonl (behaviour 8.1)."""
    require(row, where, {"prompt_id": str, "response_id": str, "response_text": str})
    reward = _reward(where, row, ("reward", "score"))
    if (success := row.get("success")) is None:
        success = reward >= SUCCESS
    else:
        require(row, where, {"success": bool})
    response = Response(row["response_id"], row["response_text"], reward, success)
    return _Row(
        where,
        "a candidate (response_text)",
        _uid(where, row) or row["prompt_id"],
        row["prompt_id"],
        row.get("prompt") or "",
        row.get("difficulty_bucket"),
        _step(where, row, "rollout_step"),
        row.get("outcome") != Outcome.ERROR,
        response,
    )


def _dumped(where: str, row: Mapping[str, Any], numbers: Counter[tuple[str, int | None]]) -> _Row:
    """Read a row of a rollout dump (behaviour 3.8); one without `rollout_index` is numbered in the order of its prompt's rows."""
    if "output" not in row:
        raise UserError(
            f"{where}: is neither a candidate (it has no response_text) nor a dumped rollout (it has no output), but has {', '.join(row)}."
        )
    require(row, where, {"input": str, "output": str})
    reward, step = _reward(where, row, ("score", "reward")), _step(where, row, "step")
    prompt_id = _uid(where, row) or hashlib.sha1(row["input"].encode("utf-8", "replace")).hexdigest()[:16]
    index = row.get("rollout_index")
    if index is None:
        index = numbers[prompt_id, step]
        numbers[prompt_id, step] += 1
    # of several steps only `mix_steps` keeps more than one: then their ids must differ
    name = f"{prompt_id}_s{step}_r{index}" if step is not None else f"{prompt_id}_r{index}"
    judged, response = row.get("outcome") != Outcome.ERROR, Response(name, row["output"], reward, reward >= SUCCESS)
    return _Row(where, "a dumped rollout (input, output)", prompt_id, prompt_id, row["input"], None, step, judged, response)


def _reward(where: str, row: Mapping[str, Any], names: tuple[str, str]) -> float:
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise UserError(f"{where}: has neither {names[0]!r} nor {names[1]!r} (it has {', '.join(row)}).")
    require(row, where, {name: float})
    return float(row[name])


def _step(where: str, row: Mapping[str, Any], name: str) -> int | None:
    if row.get(name) is not None:
        require(row, where, {name: int})
    return row.get(name)


def _uid(where: str, row: Mapping[str, Any]) -> str | None:
    if row.get("uid") is not None:
        require(row, where, {"uid": str})
    return row.get("uid")
