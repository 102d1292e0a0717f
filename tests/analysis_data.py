"""Rollouts for the tests of the analysis: the real sample, shortened, and dumps as training writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.files import read_jsonl, write_jsonl

SAMPLE = "rollouts_sample"


def sample(shared_data: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a file of the published sample."""
    return read_jsonl(shared_data / SAMPLE / f"{name}.jsonl")


def published_dumps(shared_data: Path, folder: Path, characters: int | None = None) -> Path:
    """Write the sample's candidates back as the dumps they came from, responses cut to so many characters."""
    files: dict[str, list[dict[str, Any]]] = {}
    for row in sample(shared_data, "candidate_responses"):
        files.setdefault(row["source_file"], []).append(
            {
                "input": row["prompt"],
                "output": row["response_text"][:characters],
                "gts": row["ground_truth"],
                "score": row["reward"],
                "step": row["rollout_step"],
                **{name: row[name] for name in ("acc", "pred", "incorrect_format")},
                "feedback": row["feedback_text"],
            }
        )
    for name, rows in files.items():
        write_jsonl(folder / name, rows)
    return folder


def rollout(uid: str, step: int, index: int, score: float, **more: Any) -> dict[str, Any]:
    """Return a row of a dump of ours, without token ids."""
    return {
        "input": f"user\n{uid}+1=\nassistant\n",
        "output": f"Answer:{index}",
        "gts": "0",
        "score": score,
        "step": step,
        "acc": score,
        "pred": str(index),
        "incorrect_format": 0,
        "feedback": "",
        "outcome": "pass" if score >= 1 else "fail",
        "uid": uid,
        "rollout_index": index,
        "data_source": "tiny_chains",
        "messages": [{"role": "user", "content": f"{uid}+1="}],
        "finished": True,
        **more,
    }


def group(uid: str, step: int, scores: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    """Return the rows of a group in a dump of ours."""
    return [rollout(uid, step, index, score, **more) for index, score in enumerate(scores)]


def write_lines(path: Path, *lines: str) -> Path:
    """Write a file of exactly these lines, the last without its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
