"""Figures of the teacher's signal from the metrics of compute_teacher_signal_metrics.py, each as PNG and SVG.

    python analysis/plot_teacher_metrics.py --input metrics.json --output-dir plots

teacher_metrics_main: six metrics by condition. teacher_metrics_by_bucket: the same by difficulty.
teacher_paired_differences: conditions minus `base`, and what one peer more adds, on common prompts.
Reads files of the published project as well; they have no paired differences.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # not this folder, whose signal.py is not Python's

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import command
from analysis.scored import BASE, REQUIRED, SETS, STUDENT
from data.writing import whole
from trainer.errors import UserError

MAIN = (
    BASE,
    "solution",
    "another_solution",
    "solution+another_solution",
    "failure_solution",
    "solution+failure_solution",
    "solution+another_solution+failure_solution",
    "random_peer",
    "verifier_score_ordered",
)  # drawn unless asked otherwise; a file with no more conditions than these is drawn whole
STEPS = (
    ("solution", "solution+another_solution"),
    ("solution", "solution+failure_solution"),
    ("solution+another_solution", "solution+another_solution+failure_solution"),
    ("solution+failure_solution", "solution+another_solution+failure_solution"),
)  # what one peer more adds
PANELS = {
    "mean_spearman": ("Spearman, score and reward", 0.0),
    "mean_kendall_tau": ("Kendall's tau, score and reward", 0.0),
    "pairwise_accuracy": ("pairwise accuracy", 0.5),
    "success_auc": ("AUC, success over failure", 0.5),
    "success_point_biserial": ("point-biserial, score and success", 0.0),
    "success_brier_sigmoid": ("Brier of sigmoid (lower is better, axis reversed)", None),
}  # metric -> title, value of a score that knows nothing
BUCKETS = ("easy", "medium", "hard")
# Okabe and Ito's colours, told apart with any colour vision; the hatches also in grey
KINDS = {
    "question alone": ("#999999", ""),
    "successes": ("#0072B2", ""),
    "failure": ("#D55E00", "//"),
    "successes and failure": ("#009E73", "xx"),
    "feedback or summaries": ("#E69F00", ".."),
    "controls and others": ("#CC79A7", "--"),
}
SCORES = {"teacher": ("#0072B2", "o", "teacher's score"), "advantage": ("#D55E00", "D", "advantage: score minus the student's")}


def kind_of(condition: str) -> str:
    """Return which of KINDS a condition belongs to, by the sections it is named after."""
    sections = set(REQUIRED.get(condition, ()))
    if condition not in REQUIRED or condition.startswith(("random_", "verifier_")):
        return "controls and others"
    if not sections:
        return "question alone"
    if sections & {"feedback", "summary"}:
        return "feedback or summaries"
    if sections == {"failure_solution"}:
        return "failure"
    return "successes and failure" if "failure_solution" in sections else "successes"


def chosen(there: Mapping[str, Any], asked: Sequence[str] | None) -> list[str]:
    """Return the conditions to draw, in the order of REQUIRED."""
    if asked and (unknown := [name for name in asked if name not in there]):
        raise UserError(f"--conditions: {', '.join(unknown)} not in this sample set; it has {', '.join(there)}.")
    wanted = asked or (there if len(there) <= len(MAIN) else MAIN)
    order = list(REQUIRED)
    return sorted((name for name in there if name in wanted), key=lambda name: (order.index(name) if name in order else len(order), name))


def draw_bars(axes: Axes, entries: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Draw a metric's bar, interval and number of prompts for each condition, the first on top.

    Bars begin at the value of a score that knows nothing: an AUC of .5 is none, one below it points the other way.
    """
    title, nothing = PANELS[metric]
    origin = nothing or 0.0
    for y, (name, entry) in enumerate(entries.items()):
        value = entry.get(metric)
        if value is None:
            axes.annotate("not defined", (origin, y), (4, 0), textcoords="offset points", va="center", fontsize="x-small", color="0.4")
            continue
        colour, hatch = KINDS[kind_of(name)]
        axes.barh(y, value - origin, left=origin, height=0.72, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        low, high = entry.get(f"{metric}_ci") or (None, None)
        if low is not None:
            axes.plot([low, high], [y, y], color="black", linewidth=1.2, marker="|", markersize=4)
        prompts = entry.get(f"{metric}_count", entry["count_prompts"])
        _beside(axes, y, f"{value:.2f} ({prompts})", fontsize="x-small")
    if nothing is not None:
        axes.axvline(nothing, color="black", linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize="small")
    axes.set_yticks(range(len(entries)), list(entries), fontsize="small")
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize="x-small")
    axes.spines[["top", "right"]].set_visible(False)
    if metric.startswith("success_brier"):
        axes.invert_xaxis()


def _beside(axes: Axes, y: float, text: str, **look: str) -> None:
    """Write a line at height `y` to the right of a panel."""
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axes.annotate(text, (1, y), (4, 0), **place, **look)


def main_figure(entries: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw the six metrics of PANELS by condition."""
    figure, grid = pyplot.subplots(2, 3, figsize=(14, 2.2 + 0.62 * len(entries)), sharey=True, layout="constrained")
    for axes, metric in zip(grid.flat, PANELS, strict=True):
        draw_bars(axes, entries, metric)
    _finish(figure, entries, title)
    return figure


def bucket_figure(entries: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Draw the six metrics by condition, a column for each difficulty."""
    there = {bucket for entry in entries.values() for bucket in entry.get("by_bucket", {})}
    buckets = [name for name in BUCKETS if name in there] + sorted(there.difference(BUCKETS))
    if not buckets:
        raise UserError("The conditions of this sample set have no 'by_bucket'.")
    size = (4.2 * len(buckets) + 2.5, len(PANELS) * (0.8 + 0.24 * len(entries)))
    figure, grid = pyplot.subplots(len(PANELS), len(buckets), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for row, metric in zip(grid, PANELS, strict=True):
        for axes, bucket in zip(row, buckets, strict=True):
            part = {name: entry.get("by_bucket", {}).get(bucket, {"count_prompts": 0}) for name, entry in entries.items()}
            draw_bars(axes, part, metric)
            axes.set_title(f"{bucket}: {axes.get_title()}", fontsize="small")
    _finish(figure, entries, title)
    return figure


def _finish(figure: Figure, entries: Mapping[str, Any], title: str) -> None:
    kinds = [kind for kind in KINDS if any(kind_of(name) == kind for name in entries)]
    handles: list[Any] = [Patch(facecolor=KINDS[kind][0], hatch=KINDS[kind][1], edgecolor="white", label=kind) for kind in kinds]
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=0.8, label="a score that knows nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.suptitle(f"{title}\nmean over prompts with 95 % interval; beside it the value (prompts that define it)", fontsize="medium")


Found = dict[tuple[str, str], dict[tuple[str, str], Mapping[str, Any]]]  # (first, second) -> (metric, score) -> difference


def found_pairs(rows: Sequence[Mapping[str, Any]], conditions: Sequence[str]) -> Found:
    """Return the differences of `base` to `student`, of conditions to `base`, then what one peer more adds; only pairs that have any."""
    pairs = [(STUDENT, BASE), *((BASE, name) for name in conditions if name not in (STUDENT, BASE))]
    pairs += [(first, second) for first, second in STEPS if first in conditions and second in conditions]
    found: Found = {pair: {} for pair in pairs}
    for row in rows:
        if row["prompts"] and (row["first"], row["second"]) in found:
            found[row["first"], row["second"]][row["metric"], row["score"]] = row
    return {pair: differences for pair, differences in found.items() if differences}


def difference_figure(found: Found, title: str) -> Figure:
    """Draw the paired differences, a row of panels for each score (their sizes differ), the first pair on top; higher is better."""
    metrics = ("success_auc", "pairwise_accuracy", "mean_spearman")
    scores = [score for score in SCORES if any(key[1] == score for differences in found.values() for key in differences)]
    size = (15, 1.6 + 0.36 * len(found) * len(scores))
    figure, grid = pyplot.subplots(len(scores), len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for score, panels in zip(scores, grid, strict=True):
        colour, marker, label = SCORES[score]
        for axes, metric in zip(panels, metrics, strict=True):
            for y, differences in enumerate(found.values()):
                if (row := differences.get((metric, score))) is None:
                    continue
                low, high = row["ci"]
                if low is not None:
                    axes.plot([low, high], [y, y], color=colour, linewidth=1.4)
                axes.plot(row["mean_difference"], y, marker, color=colour, markersize=5)
                p = "" if row["sign_test_p"] is None else f", p {row['sign_test_p']:.1g}"
                _beside(axes, y, f"n {row['prompts']}{p}", fontsize="xx-small", color=colour)
            axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
            axes.set_title(f"{label}:\n{PANELS[metric][0]}", fontsize="small")
            axes.set_yticks(range(len(found)), [f"{second}\nminus {first}" for first, second in found], fontsize="x-small")
            axes.set_ylim(len(found) - 0.4, -0.6)
            axes.tick_params(axis="x", labelsize="x-small")
            axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{title}\npaired differences on the prompts where both conditions define the metric (n); 95 % interval; p of the sign test",
        fontsize="medium",
    )
    return figure


def read_metrics(path: Path, sample_set: str, score: str, target_type: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the conditions of a sample set and its paired differences (none in published files and for a target type)."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it with compute_teacher_signal_metrics.py.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not JSON ({error}); give the output of compute_teacher_signal_metrics.py.") from None
    sets = result.get("sample_sets") if isinstance(result, dict) else None
    if not isinstance(sets, dict):
        raise UserError(f"{path}: has no 'sample_sets'; give the output of compute_teacher_signal_metrics.py.")
    if sample_set not in sets:
        raise UserError(f"--sample-set {sample_set}: not in {path}; it has {', '.join(sets)}.")
    data = sets[sample_set] if score == "teacher" else sets[sample_set].get(score)
    if data is None:
        raise UserError(f"--score {score}: not in {path}; it needs the condition {BASE!r} or {STUDENT!r} and a file made by this project.")
    if target_type:
        types = data.get("paired_by_target_type", {})
        if target_type not in types:
            raise UserError(f"--paired-target-type {target_type}: not in sample set {sample_set}; it has {', '.join(types) or 'none'}.")
        return types[target_type]["conditions"], []
    return data["conditions"], sets[sample_set].get("paired_differences", [])


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as NAME.png and NAME.svg, all of them or none; the same numbers give the same SVG."""
    with whole(*(folder / f"{name}.{kind}" for name in figures for kind in ("png", "svg"))) as partials:
        for figure, png, svg in zip(figures.values(), partials[::2], partials[1::2], strict=True):
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once, not for each file
            figure.savefig(png, format="png", dpi=150)
            figure.savefig(svg, format="svg", metadata={"Date": None})
            pyplot.close(figure)
    for name in figures:
        print(f"wrote {folder / name}.png, .svg")


def plot(options: argparse.Namespace) -> None:
    """Do what the command says."""
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "mopd", "svg.fonttype": "none", "hatch.linewidth": 0.6})
    there, differences = read_metrics(options.input, options.sample_set, options.score, options.paired_target_type)
    names = chosen(there, options.conditions)
    if not names:
        raise UserError(f"{options.input}: sample set {options.sample_set} has no condition to draw.")
    entries = {name: there[name] for name in names}
    title = f"{options.sample_set}, {SCORES[options.score][2]}"
    if options.paired_target_type:
        title += f", {options.paired_target_type} on common prompts"
    figures = {"teacher_metrics_main": main_figure(entries, title)}
    if any(entry.get("by_bucket") for entry in entries.values()):
        figures["teacher_metrics_by_bucket"] = bucket_figure(entries, title)
    else:
        print("no teacher_metrics_by_bucket: the input has no difficulty buckets")
    if found := found_pairs(differences, names):
        figures["teacher_paired_differences"] = difference_figure(found, options.sample_set)
    else:
        print("no teacher_paired_differences: the input has none for these conditions in this sample set")
    save(figures, options.output_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser_of(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="the JSON of compute_teacher_signal_metrics.py")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--sample-set", choices=list(SETS), default="all_samples")
    parser.add_argument("--paired-target-type", metavar="TYPE", help="draw the prompts that all conditions have, for targets of this type")
    parser.add_argument("--score", choices=list(SCORES), default="teacher", help="which score the bars are of (default teacher)")
    parser.add_argument("--conditions", nargs="+", metavar="CONDITION", help="what to draw (default: the nine main ones)")
    return command.main(parser, plot, arguments)


if __name__ == "__main__":
    sys.exit(main())
