"""Rollout dumps to candidate responses in groups, the first step of the analysis.

    python analysis/prepare_rollout_dataset.py --input rollouts/NAME --output-dir analysis_out

Takes the dumps of training (rollouts/NAME/STEP.jsonl), of validation and run_eval_sdpo.sh (validation/NAME/STEP.jsonl)
and of the published project; writes candidate_responses.jsonl, evidence_items.jsonl and
dataset_summary.json in its schema. Our dumps carry uid and step, so a group is the rollouts of one
prompt in one step of one run; its prompt_id is <uid>_s<step>, its uid that of the prompt. Dumps without uids are
grouped by prompt text over all files, as published, or with --by-step by text and step.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import glob
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis import command
from analysis.rows import Fields, Row, read_jsonl, require, write_json
from data.writing import put, whole
from trainer.errors import UserError
from trainer.seeds import generator
from trainer.uid import numbered

DUMP: Fields = {"input": (str, list, dict), "output": (str, list, dict), "score": float}
OURS: Fields = {"uid": str, "step": int, "rollout_index": int}
EXTRA = ("messages", "response_ids", "finished", "outcome", "data_source", "rollout_index")  # of our dumps, passed on
BUCKETS = (("easy", 4), ("medium", 1), ("hard", 0))  # name, successes needed
WRITTEN = ("candidate_responses.jsonl", "evidence_items.jsonl")
FALLBACK = 300  # characters of a response that stand for a summary where there is none
PUBLISHED_THRESHOLD = 0.5  # the reward from which the published training shows a response as a success
_SUMMARY = re.compile(r"<summary>(.*?)</summary>", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a rollout stands: file and line, its number in the group and whether it passed."""

    file: int
    line: int
    number: int
    success: bool


@dataclass
class Members:
    """A group as found: its places in the order read, its steps; then its name and bucket."""

    uid: str
    suffix: str = ""
    places: list[Place] = field(default_factory=list)
    steps: set[Any] = field(default_factory=set)
    prompt_id: str = ""

    @property
    def bucket(self) -> str:
        passed = sum(place.success for place in self.places)
        return next(name for name, needed in BUCKETS if passed >= needed)


@dataclass
class Tally:
    """What was left out, and what needs saying."""

    judge_errors: int = 0
    too_small: int = 0
    partly_right: int = 0  # rewards that training calls a success and the threshold does not


def input_files(given: Sequence[str]) -> list[Path]:
    """Return the files of paths, folders (searched for *.jsonl) and glob patterns, absolute ones too, in numeric order.

    A file that is named twice counts once; in folders what this command writes is passed over. Raises UserError for what
    matches nothing.
    """
    found: dict[Path, Path] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            matches = [file for file in path.rglob("*.jsonl") if file.name not in WRITTEN]
        else:
            matches = [path] if path.is_file() else [Path(match) for match in glob.glob(name, recursive=True)]
        files = sorted((file for file in matches if file.is_file()), key=_natural)
        if not files:
            raise UserError(f"--input {name}: no file is there that it names (a file, a folder with *.jsonl in it, or a glob pattern).")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def find_groups(files: Sequence[Path], threshold: float, *, by_step: bool, tally: Tally) -> list[Members]:
    """Read all dumps once and return their groups in order of appearance, with nothing of the texts kept."""
    groups: dict[tuple, Members] = {}
    for number, file in enumerate(files):
        has_uid: bool | None = None
        for where, row in read_jsonl(file):
            if "response_text" in row and "output" not in row:
                raise UserError(f"{where}: is a candidate response already (it has response_text): go on with build_context_variants.py.")
            require(row, where, DUMP)
            if has_uid is None:
                has_uid = "uid" in row
            if has_uid != ("uid" in row):
                raise UserError(f"{where}: has {'no' if has_uid else 'a'} uid, unlike the rows before: two kinds of dumps in one file.")
            if row.get("outcome") == "error":  # the verifier failed: that says nothing of the response
                tally.judge_errors += 1
                continue
            tally.partly_right += PUBLISHED_THRESHOLD <= row["score"] < threshold
            key, uid, suffix = _group_of(row, where, number, by_step)
            members = groups.setdefault(key, Members(uid, suffix))
            k = row["rollout_index"] if has_uid else len(members.places)
            if has_uid and any(place.number == k for place in members.places):
                raise UserError(f"{where}: rollout {k} of uid {uid!r} stands there twice: the dump was written twice into one file.")
            members.places.append(Place(number, int(where.rsplit(":", 1)[1]), k, row["score"] >= threshold))
            members.steps.add(row.get("step"))
    seen: dict[str, int] = {}
    for members in groups.values():
        members.prompt_id = numbered(members.uid + members.suffix, seen)
    return list(groups.values())


def _group_of(row: Row, where: str, file: int, by_step: bool) -> tuple[tuple, str, str]:
    """Return (key, uid, what the prompt_id adds to the uid) of the group of a row."""
    step = row.get("step")
    if "uid" in row:
        require(row, where, OURS)
        return (file, row["uid"], step), row["uid"], f"_s{step}"
    uid = hashlib.sha1(_text(row["input"]).encode()).hexdigest()[:16]
    return ((uid, step), uid, f"_s{step}") if by_step else ((uid,), uid, "")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def choose(groups: list[Members], options: argparse.Namespace, tally: Tally) -> list[Members]:
    """Return the groups to keep, each with the responses to keep, in order of appearance.

    Small groups go; of large ones a seeded sample stays. With `max_prompts`, as many of each bucket, and what one bucket
    does not have the others get.
    """
    kept = [members for members in groups if len(members.places) >= options.min_responses_per_prompt]
    tally.too_small = len(groups) - len(kept)
    for members in kept:
        members.places.sort(key=lambda place: place.number)
        if len(members.places) > options.max_responses_per_prompt:
            drawn = generator(options.seed, "responses", members.prompt_id).choice(
                len(members.places), options.max_responses_per_prompt, replace=False
            )
            members.places = [members.places[i] for i in sorted(drawn)]
    if options.max_prompts is None or len(kept) <= options.max_prompts:
        return kept
    buckets: dict[str, list[int]] = defaultdict(list)
    for i, members in enumerate(kept):
        buckets[members.bucket].append(i)
    taken: list[int] = []
    room = options.max_prompts
    for left, name in zip(range(len(buckets), 0, -1), sorted(buckets, key=lambda name: (len(buckets[name]), name)), strict=True):
        quota = min(len(buckets[name]), -(-room // left) if left > 1 else room)  # the smallest bucket first
        taken += generator(options.seed, "prompts", name).permutation(buckets[name])[:quota].tolist()
        room -= quota
    return [kept[i] for i in sorted(taken)]


def candidates(files: Sequence[Path], roots: Sequence[str], groups: Sequence[Members], threshold: float) -> Iterator[list[Row]]:
    """Read the dumps again and yield the candidate rows of each chosen group once it is complete."""
    wanted = {(place.file, place.line): (members, place) for members in groups for place in members.places}
    waiting: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for number, file in enumerate(files):
        for where, row in read_jsonl(file):
            line = int(where.rsplit(":", 1)[1])
            if (number, line) not in wanted:
                continue
            members, place = wanted[number, line]
            part = waiting[members.prompt_id]
            part.append((place.number, candidate(row, members, place.number, threshold, _shown(file, roots), line)))
            if len(part) == len(members.places):
                yield [row for _, row in sorted(waiting.pop(members.prompt_id), key=lambda item: item[0])]


def _shown(file: Path, roots: Sequence[str]) -> str:
    """Return the file as the rows name it: below the folder that was asked for, else by its own name."""
    return next((str(file.relative_to(root)) for root in roots if Path(root).is_dir() and file.is_relative_to(root)), file.name)


def candidate(row: Row, members: Members, number: int, threshold: float, source_file: str, source_line: int) -> Row:
    """Return the candidate row of a rollout: the published fields in their order, then what our dumps add."""
    output = _text(row["output"])
    summary = next((found for text in _SUMMARY.findall(output) if (found := text.strip())), None)
    feedback = "" if row.get("feedback") is None else _text(row["feedback"])
    passed = sum(place.success for place in members.places)
    size = len(members.places)
    return {
        "prompt_id": members.prompt_id,
        "uid": members.uid,
        "prompt": _text(row["input"]),
        "response_id": f"{members.prompt_id}_r{number}",
        "response_text": output,
        "reward": float(row["score"]),
        "success": row["score"] >= threshold,
        "summary_text": summary,
        "summary_text_effective": output[:FALLBACK].strip() if summary is None else summary,
        "summary_has_tag": summary is not None,
        "summary_is_fallback": summary is None,
        "feedback_text": feedback,
        "has_feedback": bool(feedback.strip()),
        "ground_truth": row.get("gts"),
        "pred": row.get("pred"),
        "acc": row.get("acc"),
        "incorrect_format": row.get("incorrect_format"),
        "difficulty_bucket": members.bucket,
        "prompt_group_size": size,
        "prompt_success_count": passed,
        "prompt_failure_count": size - passed,
        "prompt_has_primary_success": passed >= 1,
        "prompt_has_another_success": passed >= 2,
        "prompt_has_failure_peer": passed < size,
        "source_file": source_file,
        "source_line": source_line,
        "rollout_step": row.get("step"),
        **{name: row[name] for name in EXTRA if name in row},
    }


def evidence(row: Row) -> list[Row]:
    """Return the evidence rows of a candidate: the response, its summary, and its feedback if there is any."""
    has_tag = row["summary_has_tag"]
    items = [("response_full", "response_full", row["response_text"], False)]
    items.append(("summary", "summary", row["summary_text_effective"], row["summary_is_fallback"]))
    if row["has_feedback"]:
        items.append(("feedback", "environment_feedback", row["feedback_text"], False))
    return [
        {
            "evidence_id": f"{row['response_id']}::{name}",
            "prompt_id": row["prompt_id"],
            "uid": row["uid"],
            "source_response_id": row["response_id"],
            "evidence_type": kind,
            "role": "success" if row["success"] else "failure",
            "text": text,
            "summary_text": row["summary_text"],
            "has_summary_tag": has_tag,
            "is_fallback_summary": fallback,
            "reward": row["reward"],
            "success": row["success"],
            "difficulty_bucket": row["difficulty_bucket"],
            "source_file": row["source_file"],
            "source_line": row["source_line"],
            "rollout_step": row["rollout_step"],
        }
        for name, kind, text, fallback in items
    ]


def prepare(options: argparse.Namespace) -> Row:
    """Write the three files, whole or not at all; return the summary."""
    if options.max_responses_per_prompt < options.min_responses_per_prompt:
        raise UserError(
            f"--max-responses-per-prompt {options.max_responses_per_prompt} is below --min-responses-per-prompt "
            f"{options.min_responses_per_prompt}: no group would be left to compare."
        )
    files, tally = input_files(options.input), Tally()
    found = find_groups(files, options.success_threshold, by_step=options.by_step, tally=tally)
    groups = choose(found, options, tally)
    if not groups:
        raise UserError(
            f"none of the {len(found)} prompts in {len(files)} files has {options.min_responses_per_prompt} judged responses "
            "(--min-responses-per-prompt): there is nothing to compare."
        )
    out, count, kinds = options.output_dir, Counter(), Counter()
    with whole(*(out / name for name in WRITTEN)) as (first, second):
        with first.open("w", encoding="utf-8") as to_candidates, second.open("w", encoding="utf-8") as to_evidence:
            for members in candidates(files, options.input, groups, options.success_threshold):
                for row in members:
                    put(to_candidates, row)
                    count.update(candidates=1, tags=row["summary_has_tag"], feedback=row["has_feedback"], successes=row["success"])
                    for item in evidence(row):
                        put(to_evidence, item)
                        kinds[item["evidence_type"]] += 1
        passed = [sum(place.success for place in members.places) for members in groups]
        summary = {
            "input_paths": [str(file) for file in files],
            "success_threshold": options.success_threshold,
            "max_prompts": options.max_prompts,
            "max_responses_per_prompt": options.max_responses_per_prompt,
            "min_responses_per_prompt": options.min_responses_per_prompt,
            "seed": options.seed,
            "aggregate": {
                "prompt_count": len(groups),
                "response_count": count["candidates"],
                "bucket_prompt_counts": dict(sorted(Counter(members.bucket for members in groups).items())),
                "mean_responses_per_prompt": count["candidates"] / len(groups),
                "mean_successes_per_prompt": count["successes"] / len(groups),
                "summary_tag_rate": count["tags"] / count["candidates"],
                "feedback_rate": count["feedback"] / count["candidates"],
                "candidate_count": count["candidates"],
                "evidence_count": kinds.total(),
                "evidence_type_counts": dict(sorted(kinds.items())),
                "mixed_prompts": sum(0 < p < len(m.places) for p, m in zip(passed, groups, strict=True)),
                "prompts_left_out_too_few_responses": tally.too_small,
                "responses_left_out_judge_error": tally.judge_errors,
                "prompts_with_several_steps": sum(len(members.steps) > 1 for members in groups),
            },
        }
    write_json(out / "dataset_summary.json", summary)
    _say(summary["aggregate"], tally, options)
    return summary


def _say(total: Row, tally: Tally, options: argparse.Namespace) -> None:
    """Print what was made, and what a reader of the results should know."""
    made = f"{total['response_count']} responses to {total['prompt_count']} prompts"
    print(f"{options.output_dir}: {made}, {total['mixed_prompts']} of them with successes and failures")
    several = total["prompts_with_several_steps"]
    notes = [
        (tally.too_small, f"prompts have fewer than {options.min_responses_per_prompt} responses: left out"),
        (tally.judge_errors, "responses could not be judged: left out"),
        (several, "prompts mix responses of several steps, so of several policies; --by-step keeps them apart"),
        (
            tally.partly_right,
            f"rewards lie from {PUBLISHED_THRESHOLD:g} up to --success-threshold {options.success_threshold:g}: failures here, "
            f"successes in a run with success_reward_threshold={PUBLISHED_THRESHOLD:g} (the published default)",
        ),
    ]
    for count, note in notes:
        if count:
            print(f"note: {count} {note}")
    if not total["mean_successes_per_prompt"]:
        print("note: no response is a success: contexts with successes will be empty")


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--input", required=True, nargs="+", help="dump files, folders searched for *.jsonl, or glob patterns")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--success-threshold", type=float, default=1.0, help="score from which a response is a success")
    parser.add_argument("--max-prompts", type=command.positive, help="at most so many groups, equally many of each bucket")
    parser.add_argument("--max-responses-per-prompt", type=command.positive, default=8)
    parser.add_argument("--min-responses-per-prompt", type=command.positive, default=2)
    parser.add_argument("--by-step", action="store_true", help="dumps without uids: keep the steps of a prompt apart")
    parser.add_argument("--seed", type=int, default=42, help="of what is left out where there is too much")
    return command.main(parser, prepare, arguments)


if __name__ == "__main__":
    sys.exit(main())
