"""A few responses per prompt to be scored under all of its contexts: student successes, student failures, strong successes.

    python analysis/build_target_responses.py --candidates OUT/candidate_responses.jsonl --output OUT/target_responses.jsonl

Takes the first so many of each kind by number, as published. `--strong-success` adds responses of a stronger model, JSON
lines with prompt_id and response_text; those marked validated_success false, and those of other prompts, are left out and
counted, and their reward is 1: null, as published, the metrics cannot take.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import hashlib
import re
from collections import Counter, defaultdict

from analysis import command
from analysis.groups import read_candidates
from analysis.rows import Fields, Row, read_jsonl, write_jsonl
from trainer.errors import UserError

STRONG: Fields = {"prompt_id": str, "response_text": str}


def target_row(kind: str, prompt_id: str, response_id: str | None, text: str, **more: object) -> Row:
    """Return a target; its id is a hash of what it is and says."""
    key = f"{kind}|{prompt_id}|{response_id or ''}|{text}"
    return {
        "target_id": hashlib.sha1(key.encode()).hexdigest()[:20],
        "target_type": kind,
        "prompt_id": prompt_id,
        "source_response_id": response_id,
        "response_text": text,
        **more,
    }


def of_the_student(rows: list[Row], successes: int, failures: int) -> list[Row]:
    """Return the first successes and failures of a prompt's candidates, by the numbers in their names."""
    ordered = sorted(rows, key=lambda row: [int(part) if part.isdigit() else -1 for part in re.split(r"(\d+)", row["response_id"])])
    passed, failed = ([row for row in ordered if row["success"] is verdict] for verdict in (True, False))
    return [
        target_row(
            kind,
            row["prompt_id"],
            row["response_id"],
            row["response_text"],
            success=row["success"],
            reward=row["reward"],
            source_model="student_rollout",
            difficulty_bucket=row["difficulty_bucket"],
            metadata={name: row.get(name) for name in ("rollout_step", "pred", "ground_truth")},
            **({"response_ids": row["response_ids"]} if row.get("response_ids") else {}),
        )
        for kind, chosen in (("student_success", passed[:successes]), ("student_failure", failed[:failures]))
        for row in chosen
    ]


def of_the_strong(path: Path | None, source_model: str, buckets: dict[str, str], left_out: Counter[str]) -> dict[str, list[Row]]:
    """Return the strong successes by prompt_id, in file order."""
    found: dict[str, list[Row]] = defaultdict(list)
    for _, row in read_jsonl(path, STRONG) if path else ():
        prompt_id = row["prompt_id"]
        if row.get("validated_success") is False:
            left_out["strong responses are marked as not validated"] += 1
        elif prompt_id not in buckets:
            left_out["strong responses belong to prompts that are not among the candidates"] += 1
        else:
            found[prompt_id].append(
                target_row(
                    "strong_success",
                    prompt_id,
                    None,
                    row["response_text"],
                    success=True,
                    reward=1.0,
                    source_model=row.get("source_model") or source_model,
                    difficulty_bucket=row.get("difficulty_bucket") or buckets[prompt_id],
                    metadata={name: row.get(name) for name in ("generator_model", "judge_info")},
                )
            )
    return found


def build(options: argparse.Namespace) -> None:
    """Write the targets, whole or not at all."""
    groups = read_candidates(options.candidates)
    left_out: Counter[str] = Counter()
    buckets = {group.prompt_id: group.rows[0]["difficulty_bucket"] for group in groups}
    strong = of_the_strong(options.strong_success, options.strong_source_model, buckets, left_out)
    rows: dict[str, Row] = {}
    for group in groups:
        own = of_the_student(group.rows, options.student_success_per_prompt, options.student_failure_per_prompt)
        for row in [*own, *strong[group.prompt_id][: options.strong_success_per_prompt]]:
            if row["target_id"] in rows:
                left_out["targets say the same as another one of their kind"] += 1
            rows.setdefault(row["target_id"], row)
    if not rows:
        raise UserError("no target is left: all of the --...-per-prompt are 0, or there is nothing of the kind.")
    write_jsonl(options.output, rows.values())
    print(f"{options.output}: {dict(Counter(row['target_type'] for row in rows.values()))}")
    for why, count in left_out.items():
        print(f"note: {count} {why}: left out")


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--candidates", type=Path, required=True, help="candidate_responses.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="target_responses.jsonl")
    parser.add_argument("--strong-success", type=Path, help="JSON lines of a stronger model's responses")
    parser.add_argument("--student-success-per-prompt", type=command.not_negative, default=1)
    parser.add_argument("--student-failure-per-prompt", type=command.not_negative, default=1)
    parser.add_argument("--strong-success-per-prompt", type=command.not_negative, default=1)
    parser.add_argument("--strong-source-model", default="strong_model", help="their source_model where the rows name none")
    return command.main(parser, build, arguments)


if __name__ == "__main__":
    sys.exit(main())
