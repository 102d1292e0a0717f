"""Scored responses (the rows of score_teacher_contexts.py, behaviour 8.4) as columns, and the sets of them that are compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.conditions import CONDITIONS, SECTIONS
from analysis.rows import read_jsonl, require
from trainer.errors import UserError

OWN = "training"  # what the run itself showed
STUDENT, BASE = "student", "base"  # the question alone, scored by the student's weights and by the teacher's
REQUIRED = (
    {STUDENT: ()}
    | {name: tuple(section for section in SECTIONS if getattr(condition, f"include_{section}")) for name, condition in CONDITIONS.items()}
    | {"solution+feedback+summary_all_k2": ("solution", "summary"), "random_peer": ("solution",), "verifier_score_ordered": ("solution",)}
)
"""condition -> the sections without which a context does not hold what its name says (behaviour 8.5); in the order of tables"""
COMPARED = (
    BASE,
    "solution",
    "solution+another_solution",
    "failure_solution",
    "failure_only",
    "solution+failure_solution",
    "solution+another_solution+failure_solution",
)  # what `mixed_paired` compares unless told otherwise: those of them that the file has
SETS = {
    "all_samples": "every scored response",
    "effective_only": "responses whose context has the sections its condition is named after",
    "reward_zero_only": "responses with reward 0",
    "reward_zero_effective_only": "responses with reward 0 whose context has the sections of its condition",
    "both_present_all": "responses of prompts with a success and a failure",
    "both_present_effective_only": "responses of prompts with a success and a failure, whose context has the sections of its condition",
    "mixed_paired": "the same responses under every compared condition: those whose context has the sections of all of them, "
    "of prompts where a success and a failure among them remain",
}
FIELDS: dict[str, Any] = {
    "condition": str,
    "prompt_id": str,
    "target_id": str,
    "teacher_score": (float, type(None)),
    "reward": (float, type(None)),
    "success": (bool, int),
}
OPTIONAL: dict[str, Any] = {
    "sections_used": dict,
    "difficulty_bucket": (str, type(None)),
    "target_type": (str, type(None)),
    "teacher_prompt_len": (float, type(None)),
    "teacher_prompt_truncated": (bool, int, type(None)),
    "variant_id": (str, type(None)),
    "target_in_context": (bool, type(None)),
    "uid": (str, type(None)),
}  # rows have them or not, but all alike


@dataclass(frozen=True, eq=False)
class Scored:
    """N scored responses. `condition`, `prompt`, `target_type` are indices into the lists of names, `bucket` [P] into `buckets`.

    `prompts` are groups: what one prompt got in one step of one file. `uid` [P] numbers the prompts themselves, so that groups
    of one prompt can be told; where rows have no uid it is their prompt_id.
    `scores["teacher"]` [N] is the teacher's mean log-prob per token, in nats; `scores["advantage"]` that minus the student's of the
    same response, NaN where there is none. The student is the condition `student`, where the scores come with it, else
    `base`: the teacher's own weights without peers. `prompt_length` and `truncated` are NaN where not given.
    `skipped` counts what was left out, with the first place of each.
    """

    conditions: list[str]
    prompts: list[str]
    buckets: list[str]
    target_types: list[str]
    condition: np.ndarray
    prompt: np.ndarray
    target: np.ndarray
    target_type: np.ndarray
    bucket: np.ndarray
    uid: np.ndarray
    scores: dict[str, np.ndarray]
    reward: np.ndarray
    success: np.ndarray
    effective: np.ndarray
    prompt_length: np.ndarray
    truncated: np.ndarray
    skipped: dict[str, dict[str, Any]] = field(default_factory=dict)
    has_sections: bool = True

    @property
    def student(self) -> str | None:
        """The condition whose scores are the student's; None if there is none."""
        return _student(self.conditions)

    def count_prompts(self, groups: np.ndarray) -> int:
        """Return of how many prompts the groups [P] of truth values are."""
        return len(np.unique(self.uid[groups]))

    def mixed(self, rows: np.ndarray) -> np.ndarray:
        """Return which prompts [P] have a success and a failure among the rows [N] of truth values."""
        count = len(self.prompts)
        passed = np.bincount(self.prompt[rows & self.success], minlength=count)
        return (passed > 0) & (np.bincount(self.prompt[rows & ~self.success], minlength=count) > 0)


class _Names:
    """Numbers names in the order they come."""

    def __init__(self) -> None:
        self.number: dict[Any, int] = {}

    def __call__(self, name: Any) -> int:
        return self.number.setdefault(name, len(self.number))


class _Reader:
    """Takes the rows in, checked, and turns them into columns."""

    def __init__(self, legacy: bool) -> None:
        self.legacy = legacy
        self.conditions, self.prompts, self.uids, self.targets, self.types, self.buckets = (_Names() for _ in range(6))
        self.columns: dict[str, list] = {}
        self.bucket_of: list[int] = []  # of each group
        self.uid_of: list[int] = []
        self.file = 0
        self.has: dict[str, bool] = {}  # which of OPTIONAL the rows have
        self.known: set[tuple[type, ...]] = set()  # types of rows that were checked: checking every row takes as long as all else
        self.seen: dict[tuple, float] = {}
        self.skipped: dict[str, dict[str, Any]] = {}

    def take(self, where: str, row: Mapping[str, Any]) -> None:
        kinds = tuple([type(row.get(name, ...)) for name in (*FIELDS, *OPTIONAL)])
        if kinds not in self.known or row["success"] not in (0, 1) or not math.isfinite(row["reward"] or 0):
            self._check(row, where)
            self.known.add(kinds)
        if row["teacher_score"] is None or not math.isfinite(row["teacher_score"]):
            self._skip("rows without a finite teacher_score", where)
        elif row.get("target_in_context") and row.get("target_type") != "self_response" and not self.legacy:
            self._skip("rows of responses that their context shows to the teacher", where)
        elif self._repeats(row, where):
            self._skip("rows that repeat an earlier one", where)
        else:
            if row["reward"] is None:
                self._skip("null rewards (the verdict, 1 or 0, was taken)", where)
            self._add(row)

    def _check(self, row: Mapping[str, Any], where: str) -> None:
        finite = not isinstance(row.get("teacher_score"), float)  # of NaN and infinity the row is skipped and counted, not refused
        require(row, where, FIELDS if finite else {name: types for name, types in FIELDS.items() if name != "teacher_score"})
        if row["success"] not in (0, 1):
            raise UserError(f"{where}: field 'success' is {row['success']!r}, which is neither true nor false.")
        self.has = self.has or {name: name in row for name in OPTIONAL}
        for name, types in OPTIONAL.items():
            if (name in row) is not self.has[name]:
                raise UserError(
                    f"{where}: {'has' if name in row else 'lacks'} the field {name!r}, unlike the first row: two schemas in one file. "
                    "Analyse them one by one."
                )
            if name in row:
                require(row, where, {name: types})

    def _skip(self, why: str, where: str) -> None:
        self.skipped.setdefault(why, {"count": 0, "first": where})["count"] += 1

    def _repeats(self, row: Mapping[str, Any], where: str) -> bool:
        if row.get("variant_id") is None:
            return False
        key, score = (self.file, row["variant_id"], row["condition"], row["target_id"]), row["teacher_score"]
        if key not in self.seen:
            self.seen[key] = score
            return False
        if self.seen[key] != score:
            raise UserError(
                f"{where}: target {row['target_id']!r} is scored again under {row['condition']!r}, with {score} after {self.seen[key]}: "
                "two scorings in one file. Keep one of them."
            )
        return True

    def _add(self, row: Mapping[str, Any]) -> None:
        prompt = self.prompts((self.file, row["prompt_id"]))
        if prompt == len(self.bucket_of):
            self.bucket_of.append(self.buckets(row.get("difficulty_bucket") or "unknown"))
            self.uid_of.append(self.uids((None if self.legacy else row.get("uid")) or row["prompt_id"]))
        used = row.get("sections_used") or {}
        values = {
            "condition": self.conditions(row["condition"]),
            "prompt": prompt,
            "target": self.targets((prompt, row["target_id"])),
            "type": self.types(row.get("target_type") or "unknown"),
            "score": row["teacher_score"],
            "reward": float(row["success"]) if row["reward"] is None else row["reward"],
            "success": bool(row["success"]),
            "effective": _effective(row, used, self.legacy),
            "length": row.get("teacher_prompt_len"),
            "truncated": row.get("teacher_prompt_truncated"),
        }
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def scored(self) -> Scored:
        names = self.conditions.number
        order = [name for name in REQUIRED if name in names] + sorted(name for name in names if name not in REQUIRED)
        rank = np.empty(len(order), int)
        rank[[names[name] for name in order]] = np.arange(len(order))
        columns = {
            name: np.array(values, int if name in ("condition", "prompt", "target", "type") else np.float64)
            for name, values in self.columns.items()
        }
        condition, teacher = rank[columns["condition"]], columns["score"]
        return Scored(
            conditions=order,
            prompts=[name for _, name in self.prompts.number],
            buckets=list(self.buckets.number),
            target_types=list(self.types.number),
            condition=condition,
            prompt=columns["prompt"],
            target=columns["target"],
            target_type=columns["type"],
            bucket=np.array(self.bucket_of),
            uid=np.array(self.uid_of),
            scores={"teacher": teacher, "advantage": teacher - _student_scores(order, condition, columns["target"], teacher)},
            reward=columns["reward"],
            success=columns["success"].astype(bool),
            effective=columns["effective"].astype(bool),
            prompt_length=columns["length"],
            truncated=columns["truncated"],
            skipped=self.skipped,
            has_sections=self.has["sections_used"],
        )


def read_scored(paths: Sequence[Path], *, legacy: bool = False) -> Scored:
    """Read scored files; a group is of one file (a step, a seed, a run).

    A row without a finite score, one that repeats another (same variant and target), and one of a response that another's
    context shows (the teacher may copy it, whatever the verdict) is skipped and counted; a null reward is the verdict's
    1 or 0, counted as well. `legacy` keeps shown responses and takes the published map of required sections, which requires
    nothing of `failure_only` and of conditions it does not know.

    Raises:
        UserError: naming file and line, for what `read_jsonl` refuses, a missing or wrong field, a verdict that is neither
            true nor false, one target scored twice with different results, rows of two schemas, and a file in which
            nothing is scored.
    """
    reader = _Reader(legacy)
    for reader.file, path in enumerate(paths):
        for where, row in read_jsonl(path):
            reader.take(where, row)
    if not reader.columns:
        raise UserError(f"{', '.join(map(str, paths))}: no row has a finite teacher_score.")
    return reader.scored()


def _effective(row: Mapping[str, Any], used: Mapping[str, Any], legacy: bool) -> bool:
    """Say whether a row's context holds what its condition is named after; of the run's own, anything at all: else nothing is distilled."""
    if row["condition"] == OWN and not legacy:
        return any(used.values())
    return all(used.get(section) for section in _required(row, legacy))


def _required(row: Mapping[str, Any], legacy: bool) -> tuple[str, ...]:
    """Return the sections a row's context must have; those of an unknown condition are what its variant asks for."""
    condition = row["condition"]
    if legacy and (condition == "failure_only" or condition not in REQUIRED):
        return ()
    if condition in REQUIRED:
        return REQUIRED[condition]
    spec = row.get("variant_spec") or {}
    return tuple(section for section in SECTIONS if spec.get(f"include_{section}") is True)


def _student(conditions: Sequence[str]) -> str | None:
    return next((name for name in (STUDENT, BASE) if name in conditions), None)


def _student_scores(conditions: Sequence[str], condition: np.ndarray, target: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return for each row the student's score of its response (mean, if scored several times), NaN where there is none."""
    count, student = int(target.max()) + 1, _student(conditions)
    rows = condition == (conditions.index(student) if student else -1)
    times = np.bincount(target[rows], minlength=count)
    total = np.bincount(target[rows], teacher[rows], count)
    return np.divide(total, times, out=np.full(count, np.nan), where=times > 0)[target]


def sample_sets(scored: Scored, compared: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the rows [N] of each of SETS, as truth values."""
    everything = np.ones(len(scored.reward), bool)
    both = scored.mixed(everything)[scored.prompt]
    zero = scored.reward == 0
    return {
        "all_samples": everything,
        "effective_only": scored.effective,
        "reward_zero_only": zero,
        "reward_zero_effective_only": zero & scored.effective,
        "both_present_all": both,
        "both_present_effective_only": both & scored.effective,
        "mixed_paired": _mixed_paired(scored, compared),
    }


def _mixed_paired(scored: Scored, compared: Sequence[str]) -> np.ndarray:
    wanted = [scored.conditions.index(name) for name in compared]
    rows = scored.effective & np.isin(scored.condition, wanted)
    times = np.zeros(int(scored.target.max()) + 1, int)
    for condition in wanted:
        times[np.unique(scored.target[rows & (scored.condition == condition)])] += 1
    rows &= (times == len(wanted))[scored.target]
    return rows & scored.mixed(rows)[scored.prompt]
