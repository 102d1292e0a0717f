"""How well the teacher's scores rank responses, by what its prompt shows: correlations, AUC, accuracy.

    python analysis/compute_teacher_signal_metrics.py --input scored.jsonl --output metrics.json

Reads the rows of score_teacher_contexts.py. Writes the metrics of every sample set and condition as JSON, and of one
sample set a table as Markdown and CSV, with the paired differences between conditions beside it. docs/teacher_signal.md
defines the metrics and sample sets, and says what is otherwise than published.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder, whose signal.py is not Python's

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from analysis import command
from analysis.rows import write_json, write_text
from analysis.scored import BASE, COMPARED, SETS, STUDENT, Scored, read_scored, sample_sets
from analysis.signal import METRICS, Bootstrap, group_metrics, paired, per_prompt
from trainer.errors import UserError

SHOWN = ("mean_spearman", "mean_kendall_tau", "pairwise_accuracy", "success_auc")  # the published table 7


@dataclass(frozen=True, eq=False)
class Measured:
    """Every metric of every group of a sample set under one score: `values[metric]` [conditions, prompts], NaN undefined.

    `present` says which groups there are (two rows or more); `length` and `truncated` are their means.
    """

    values: Mapping[str, np.ndarray]
    present: np.ndarray
    length: np.ndarray
    truncated: np.ndarray

    @classmethod
    def of(cls, scored: Scored, rows: np.ndarray, score: str, legacy: bool) -> "Measured":
        """Measure the rows [N] (truth values) that have this score."""
        rows = np.flatnonzero(rows & ~np.isnan(scored.scores[score]))
        shape = (len(scored.conditions), len(scored.prompts))
        group = scored.condition[rows] * shape[1] + scored.prompt[rows]
        count = shape[0] * shape[1]
        metrics = group_metrics(scored.scores[score][rows], scored.reward[rows], scored.success[rows], group, count=count, legacy=legacy)
        size = np.bincount(group, minlength=count)

        def mean(column: np.ndarray) -> np.ndarray:
            with np.errstate(invalid="ignore"):
                return (np.bincount(group, column[rows], count) / size).reshape(shape)

        return cls(
            {name: values.reshape(shape) for name, values in metrics.items()},
            (size > 1).reshape(shape),
            mean(scored.prompt_length),
            mean(scored.truncated),
        )


def evaluate(paths: Sequence[Path], scored: Scored, compared: Sequence[str], *, legacy: bool, resamples: int, seed: int) -> dict[str, Any]:
    """Return the metrics of every sample set: what the command writes as JSON."""
    bootstrap = Bootstrap(resamples, seed)
    sets = {
        name: {"description": SETS[name], **_evaluate(scored, rows, compared, legacy, bootstrap)}
        for name, rows in sample_sets(scored, compared).items()
    }
    bootstrap.fill()
    everything = np.ones(len(scored.reward), bool)
    counts = np.bincount(scored.condition, minlength=len(scored.conditions))
    alone = np.bincount(scored.condition * len(scored.prompts) + scored.prompt)
    return {
        "input": ", ".join(map(str, paths)),
        "sample_sets": sets,
        "condition_sample_counts": {name: int(count) for name, count in zip(scored.conditions, counts, strict=True)},
        "both_present_prompt_count": scored.count_prompts(scored.mixed(everything)),
        "legacy_degenerate": legacy,
        "num_bootstrap": resamples,
        "seed": seed,
        "compared_conditions": list(compared),
        "student": scored.student,
        "skipped": {
            **scored.skipped,
            **({"groups of one response": {"count": int((alone == 1).sum())}} if (alone == 1).any() else {}),
        },
        "notes": notes(scored, sets, compared),
    }


def _evaluate(scored: Scored, rows: np.ndarray, compared: Sequence[str], legacy: bool, bootstrap: Bootstrap) -> dict[str, Any]:
    out: dict[str, Any] = {}
    differences = []
    for score in scored.scores:
        if score == "advantage" and scored.student is None:
            continue
        measured = Measured.of(scored, rows, score, legacy)
        part = {
            "conditions": _conditions(scored, measured, bootstrap),
            "paired_by_target_type": _by_target_type(scored, rows, score, legacy, bootstrap),
        }
        out |= part if score == "teacher" else {score: part}
        differences += _differences(scored, measured, score, compared, bootstrap)
    return {**out, "paired_differences": differences}


def _conditions(scored: Scored, measured: Measured, bootstrap: Bootstrap, only: np.ndarray | None = None) -> dict[str, Any]:
    """Return the entry of each condition that has groups; `only` keeps the prompts [P] of these truth values."""
    out = {}
    for c, name in enumerate(scored.conditions):
        prompts = measured.present[c] if only is None else measured.present[c] & only
        if not prompts.any():
            continue
        buckets = scored.bucket[prompts]
        out[name] = {
            **_entry(scored, measured, c, prompts, bootstrap),
            "by_bucket": {
                bucket: _entry(scored, measured, c, prompts & (scored.bucket == b), bootstrap)
                for b, bucket in enumerate(scored.buckets)
                if (buckets == b).any()
            },
        }
    return out


def _entry(scored: Scored, measured: Measured, condition: int, groups: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return means over prompts of `groups` [P] (truth values), their intervals, and of how many prompts they are."""
    uid = scored.uid[groups]
    entry: dict[str, Any] = {"count_prompts": len(np.unique(uid)), "count_groups": int(groups.sum())}
    defined = {name: per_prompt(measured.values[name][condition, groups], uid) for name in METRICS}
    entry |= {name: float(values.mean()) if len(values) else None for name, values in defined.items()}
    for name, values in (("mean_prompt_length", measured.length), ("truncation_rate", measured.truncated)):
        mean = values[condition, groups].mean()
        entry[name] = None if np.isnan(mean) else float(mean)
    entry |= {f"{name}_ci": bootstrap.ask(values) for name, values in defined.items()}
    return entry | {f"{name}_count": len(values) for name, values in defined.items()}


def _by_target_type(scored: Scored, rows: np.ndarray, score: str, legacy: bool, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return for each type of target the conditions on the prompts that all of them have."""
    out = {}
    for t, name in enumerate(scored.target_types):
        mine = rows & (scored.target_type == t)
        if not mine.any():
            continue
        measured = Measured.of(scored, mine, score, legacy)
        common = measured.present[measured.present.any(1)].all(0) if measured.present.any() else np.zeros(len(scored.prompts), bool)
        out[name] = {"paired_prompt_count": scored.count_prompts(common), "conditions": _conditions(scored, measured, bootstrap, common)}
    return out


def _differences(scored: Scored, measured: Measured, score: str, compared: Sequence[str], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Return second minus first: conditions against `base`, `base` against `student`, the compared ones against each other."""
    there = [name for c, name in enumerate(scored.conditions) if measured.present[c].any()]
    pairs = [
        (first, second)
        for i, first in enumerate(there)
        for second in there[i + 1 :]
        if first == BASE or (first, second) == (STUDENT, BASE) or (first in compared and second in compared)
    ]
    out = []
    for first, second in pairs:
        for metric in METRICS:
            a, b = (measured.values[metric][scored.conditions.index(name)] for name in (first, second))
            difference = paired(a, b, bootstrap, scored.uid)
            out.append(
                {
                    "score": score,
                    "first": first,
                    "second": second,
                    "metric": metric,
                    "prompts": difference.prompts,
                    "mean_difference": difference.mean,
                    "ci": difference.interval,
                    "higher": difference.higher,
                    "lower": difference.lower,
                    "equal": difference.equal,
                    "sign_test_p": difference.p,
                }
            )
    return out


def notes(scored: Scored, sets: Mapping[str, Any], compared: Sequence[str]) -> list[str]:
    """Return what a reader must know before believing the numbers."""
    out = []
    if not scored.success.any():
        out.append("no response is a success: what compares successes and failures is not defined anywhere")
    elif scored.success.all():
        out.append("every response is a success: what compares successes and failures is not defined anywhere")
    if scored.student is None:
        out.append(f"no condition {BASE!r} or {STUDENT!r}: no advantage (score minus the student's) and no differences to {BASE!r}")
    elif missing := int((np.isnan(scored.scores["advantage"])).sum()):
        out.append(f"{missing} rows have no score of the same response under {scored.student!r}: left out of the advantage")
    if not scored.has_sections:
        out.append("rows have no 'sections_used': the effective sets hold only conditions that require nothing")
    if not sets["mixed_paired"]["conditions"]:
        out.append(
            "mixed_paired is empty: no prompt has a success and a failure whose contexts have the sections of all compared conditions "
            f"({', '.join(compared)}): more prompts, or fewer conditions to compare"
        )
    return out


# ---- tables ----


def cell(entry: Mapping[str, Any], metric: str, digits: int = 3) -> str:
    """Return `value [low, high] (groups)`, with - for what is not defined."""
    if entry.get(metric) is None:
        return "-"
    low, high = entry[f"{metric}_ci"]
    interval = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{entry[metric]:.{digits}f}{interval} ({entry[f'{metric}_count']})"


def line(cells: Sequence[object]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(str(one) for one in cells)} |"


def markdown(result: Mapping[str, Any], name: str) -> str:
    """Return the table of a sample set: metrics under both scores, then the paired differences of the success AUC."""
    data = result["sample_sets"][name]
    lines = [f"Sample set `{name}`: {data['description']}.", ""]
    if result["legacy_degenerate"]:
        lines += ["Published convention: groups that do not define a metric count as 0 (top-1: as 1).", ""]
    lines += [f"Mean over prompts [95 % interval, {result['num_bootstrap']} resamples of prompts] (prompts that define it).", ""]
    head = ["condition", "count_prompts", *SHOWN]
    for title, conditions in (
        ("Teacher's score", data["conditions"]),
        (f"Advantage: score minus that under `{result['student']}`", _advantage(data)),
    ):
        if conditions:
            rows = [[key, entry["count_prompts"], *(cell(entry, metric) for metric in SHOWN)] for key, entry in conditions.items()]
            lines += [f"{title}:", "", line(head), line(["---"] * len(head)), *map(line, rows), ""]
    rows = [
        [row["score"], f"{row['second']} - {row['first']}", *difference_cells(row)]
        for row in data["paired_differences"]
        if row["metric"] == "success_auc" and row["prompts"]
    ]
    head = ["score", "pair", "prompts", "difference", "higher / lower / equal", "sign test p"]
    lines += [
        "Paired differences of the success AUC, on the prompts where both conditions define it:",
        "",
        line(head),
        line(["---"] * len(head)),
        *map(line, rows),
        "",
    ]
    return "\n".join(lines)


def _advantage(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data.get("advantage", {}).get("conditions", {})


def difference_cells(row: Mapping[str, Any]) -> list[str]:
    """Return prompts, difference with interval, prompts higher / lower / equal, p of the sign test; - where there is none."""
    low, high = row["ci"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    p = "-" if row["sign_test_p"] is None else f"{row['sign_test_p']:.2g}"
    return [str(row["prompts"]), f"{row['mean_difference']:+.3f}{interval}", f"{row['higher']} / {row['lower']} / {row['equal']}", p]


def table_csv(data: Mapping[str, Any]) -> str:
    """Return the published columns, each metric's count after them, then the same of the advantage."""
    head = ["condition", "count_prompts", *(f"{metric}{end}" for metric in SHOWN for end in ("", "_ci_low", "_ci_high"))]
    head += [f"{metric}_count" for metric in SHOWN]
    head += [f"advantage_{metric}{end}" for metric in SHOWN for end in ("", "_ci_low", "_ci_high", "_count")]
    rows = []
    for name, entry in data["conditions"].items():
        row = {"condition": name, "count_prompts": entry["count_prompts"]}
        for prefix, values in (("", entry), ("advantage_", _advantage(data).get(name, {}))):
            for metric in SHOWN if values else ():
                row[f"{prefix}{metric}"] = values[metric]
                row[f"{prefix}{metric}_ci_low"], row[f"{prefix}{metric}_ci_high"] = values[f"{metric}_ci"]
                row[f"{prefix}{metric}_count"] = values[f"{metric}_count"]
        rows.append(row)
    return _csv(head, rows)


def paired_csv(data: Mapping[str, Any]) -> str:
    """Return every paired difference of a sample set."""
    head = ["score", "metric", "first", "second", "prompts", "mean_difference", "ci_low", "ci_high", "higher", "lower", "equal"]
    rows = [row | {"ci_low": row["ci"][0], "ci_high": row["ci"][1]} for row in data["paired_differences"]]
    return _csv([*head, "sign_test_p"], rows)


def _csv(head: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, head, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


# ---- the command ----


def show(result: Mapping[str, Any], name: str, console: Console) -> None:
    """Print the success AUC of each condition, and what was left out."""
    data = result["sample_sets"][name]
    differences = {
        row["second"]: row
        for row in data["paired_differences"]
        if (row["score"], row["metric"], row["first"]) == ("teacher", "success_auc", BASE) and row["prompts"]
    }
    table = Table(
        Column("condition", no_wrap=True),
        "success AUC (prompts)",
        "of the advantage",
        f"teacher's, minus {BASE}, paired",
        "sign test p",
        title=name,
    )
    for condition, entry in data["conditions"].items():
        advantage = cell(_advantage(data).get(condition, {}), "success_auc", 2)
        _, difference, _, p = difference_cells(differences[condition]) if condition in differences else [""] * 4
        table.add_row(condition, cell(entry, "success_auc", 2), advantage, difference, p)
    console.print(table)
    for why, what in result["skipped"].items():
        console.print(f"counted: {what['count']} {why}" + (f" (first: {what['first']})" if "first" in what else ""), soft_wrap=True)
    for note in result["notes"]:
        console.print(f"note: {note}", soft_wrap=True)


def compute(options: argparse.Namespace) -> None:
    """Do what the command says."""
    if options.num_bootstrap < 1:
        raise UserError(f"--num-bootstrap is {options.num_bootstrap}: it must be 1 or more.")
    table = options.table_output or options.output.with_name(f"{options.output.stem}_table7.md")
    if table.suffix == ".csv":
        raise UserError(f"--table-output is {table}: give a Markdown file (.md); the CSV is written beside it.")
    paired_table = table.with_name(f"{table.stem}_paired.csv")
    places = [path.resolve() for path in (*options.input, options.output, table, table.with_suffix(".csv"), paired_table)]
    if twice := next((path for i, path in enumerate(places) if path in places[:i]), None):
        raise UserError(
            f"{twice}: is named twice among --input, --output and the tables beside --table-output; one would overwrite the other."
        )
    scored = read_scored(options.input, legacy=options.legacy_degenerate)
    compared = options.compare or [name for name in COMPARED if name in scored.conditions]
    if unknown := [name for name in compared if name not in scored.conditions]:
        raise UserError(f"--compare: {', '.join(unknown)} not in the input; it has {', '.join(scored.conditions)}.")
    result = evaluate(options.input, scored, compared, legacy=options.legacy_degenerate, resamples=options.num_bootstrap, seed=options.seed)
    data = result["sample_sets"][options.table_sample_set]
    write_json(options.output, result)
    write_text(table, markdown(result, options.table_sample_set))
    write_text(table.with_suffix(".csv"), table_csv(data))
    write_text(paired_table, paired_csv(data))
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 132)  # rows that a narrow terminal wraps read better than cells that are
    show(result, options.table_sample_set, console)
    console.print(f"wrote {options.output}, {table}, {table.stem}.csv, {table.stem}_paired.csv", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser_of(__doc__)
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="rows of score_teacher_contexts.py; several: steps, seeds")
    parser.add_argument("--output", type=Path, required=True, help="the metrics, JSON")
    parser.add_argument("--num-bootstrap", type=int, default=2000, help="resamples of the prompts for the intervals (default 2000)")
    parser.add_argument("--table-output", type=Path, help="the table, Markdown; a CSV beside it (default: OUTPUT's stem + _table7.md)")
    parser.add_argument("--table-sample-set", choices=list(SETS), default="both_present_effective_only")
    parser.add_argument("--seed", type=command.not_negative, default=12345, help="of the resampling (default 12345)")
    parser.add_argument(
        "--compare", nargs="+", metavar="CONDITION", help="what mixed_paired compares (default: peers, of those in the input)"
    )
    parser.add_argument("--legacy-degenerate", action="store_true", help="the published convention for groups that do not define a metric")
    return command.main(parser, compute, arguments)


if __name__ == "__main__":
    sys.exit(main())
