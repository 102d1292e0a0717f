"""The plots of compute_metrics.py's results, as PNG and SVG (docs/diversity.md).

    python diversity/plot_metrics.py --summary DIR/summary.json --per-prompt DIR/per_prompt.jsonl --output-dir DIR/plots --scatter-k 8

Writes passk_curve, method_diversity_bars, diversity_vs_passk and success_diversity_vs_passk. Runs are called what their
user called them. Colours are told apart by colour-blind readers, and by marker and line style without any colour.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from analysis import command
from analysis.rows import read_jsonl, require
from data.writing import whole
from diversity.summary import DISTANCE, Row, correlation, defined
from trainer.errors import UserError
from trainer.validation import estimate

COLOURS = matplotlib.color_sequences["petroff10"]
MARKERS, LINES = "osD^vP*X<>", ("-", "--", ":", "-.")
DEFAULT_K = 8
BARS = {
    "success_distinct2": "distinct-2 of successes\n(higher: more diverse)",
    "success_ast_node_jaccard_distance": "AST distance of successes\n(higher: more diverse)",
    "unique_code_ratio": "unique programs\n(higher: more diverse)",
    "success_pairwise_text_distance": "text distance of successes\n(higher: more diverse)",
    "success_self_bleu4": "self-BLEU of successes\n(lower: more diverse)",
    "unique_response_ratio": "unique responses\n(higher: more diverse)",
}


def style(i: int) -> dict[str, Any]:
    """Return colour and marker of the i-th run; with its line style they repeat only after many."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def label(name: str) -> str:
    """Return a run's name as matplotlib shows it unchanged: dollars are no formula, and a leading _ does not hide it."""
    return ("\u200b" if name.startswith("_") else "") + name.replace("$", r"\$")


def whiskers(value: float, ci: Sequence[float] | None) -> tuple[float, float]:
    """Return how far an interval reaches below and above a value; none: nothing."""
    return (0.0, 0.0) if ci is None else (value - ci[0], ci[1] - value)


def passk_curve(summary: Sequence[Row]) -> Figure:
    """Draw mean pass@k over k for each run, with intervals."""
    figure, axes = _figure(1)
    ks = sorted({int(name[len("pass@") : -len("_mean")]) for row in summary for name in row if _is_pass_mean(name)})
    for i, row in enumerate(summary):
        points = [(k, row[f"pass@{k}_mean"], row.get(f"pass@{k}_ci")) for k in ks if row.get(f"pass@{k}_mean") is not None]
        if not points:
            continue
        shift = 1 + 0.03 * (i - (len(summary) - 1) / 2)  # so that intervals do not hide each other
        errors = np.array([whiskers(value, ci) for _, value, ci in points]).T
        at = [k * shift for k, _, _ in points]
        axes.errorbar(at, [v for _, v, _ in points], errors, capsize=3, ls=LINES[i % 4], label=label(row["method"]), **style(i))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set(xlabel="k", ylabel="pass@k (unbiased)", title="pass@k, mean over prompts with 95 % intervals")
    axes.legend(frameon=False)
    return figure


def _is_pass_mean(name: str) -> bool:
    return name.startswith("pass@") and name.endswith("_mean")


def method_diversity_bars(summary: Sequence[Row]) -> Figure:
    """Draw a bar for each run in one panel for each measure of `BARS` that some run has; an undefined one has no bar."""
    names = [name for name in BARS if any(row.get(f"{name}_mean") is not None for row in summary)]
    figure, *panels = _figure(max(len(names), 1), columns=2 if len(names) < 5 else 3)
    if not names:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "no measure is defined:\nno prompt has two successes", ha="center", va="center")
    for axes, name in zip(panels, names, strict=False):
        for i, row in enumerate(summary):
            value = row.get(f"{name}_mean")
            if value is None:
                axes.text(i, 0, "undefined", rotation=90, ha="center", va="bottom", fontsize="small")
                continue
            error = np.array([whiskers(value, row.get(f"{name}_ci"))]).T
            axes.bar(i, value, yerr=error, capsize=3, color=style(i)["color"], width=0.7)
        axes.set_xticks(range(len(summary)), [label(row["method"]) for row in summary], rotation=30, ha="right")
        axes.set_xlim(-0.6, len(summary) - 0.4)
        axes.set_ylim(0, axes.get_ylim()[1] if any(row.get(f"{name}_mean") for row in summary) else 1)
        axes.set_title(BARS[name], fontsize="medium")
    figure.suptitle("diversity, mean over the prompts of each run that define it, with 95 % intervals (on common prompts: paired.csv)")
    return figure


def diversity_vs_passk(rows: Sequence[Row], metric: str, k: int) -> Figure:
    """Draw text distance against pass@k: a small point for each prompt, a large one with intervals for each run's mean."""
    figure, axes = _figure(1)
    for i, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        x, y = defined([row for row in rows if row["method"] == method], metric, f"pass@{k}")
        if not len(x):
            axes.scatter([], [], label=f"{label(method)} (undefined)", **style(i))
            continue
        r = correlation(x, y)
        said = "r undefined" if r is None else f"r = {r.value:.2f}" + ("" if r.low is None else f" [{r.low:.2f}, {r.high:.2f}]")
        axes.scatter(x, y, s=14, alpha=0.35, linewidths=0, **style(i))
        means = [estimate(values) for values in (x, y)]
        errors = [np.array([whiskers(e.value, None if e.low is None else (e.low, e.high))]).T for e in means]
        axes.errorbar(
            means[0].value,
            means[1].value,
            xerr=errors[0],
            yerr=errors[1],
            ms=9,
            mec="black",
            capsize=3,
            ls="",
            label=f"{label(method)}: {said}, {len(x)} prompts",
            **style(i),
        )
    of = "successful responses" if metric.startswith("success_") else "responses"
    axes.set(xlabel=f"pairwise text distance of {of}", ylabel=f"pass@{k}", title="one point a prompt; the mean with 95 % intervals")
    axes.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    return figure


def _figure(panels: int, columns: int = 1) -> tuple[Any, ...]:
    """Return a figure and its axes, at most `columns` in a row."""
    columns = min(columns, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(6.4, 4.4) if panels == 1 else (3.6 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for one in axes[panels:]:
        one.remove()
    for one in axes[:panels]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.3)
        one.set_axisbelow(True)
    return figure, *axes[:panels]


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as NAME.png and NAME.svg, all of them or none; the same numbers give the same files."""
    files = [(folder / f"{name}.{kind}", figure, kind) for name, figure in figures.items() for kind in ("png", "svg")]
    with matplotlib.rc_context({"svg.hashsalt": "mopd"}), whole(*(path for path, _, _ in files)) as partials:
        for partial, (_, figure, kind) in zip(partials, files, strict=True):
            figure.savefig(partial, format=kind, dpi=160, metadata={"Date": None} if kind == "svg" else None)


def read_summary(path: Path) -> list[Row]:
    """Return the rows of summary.json, one a run. Raises UserError for a file that is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["summary"]
        rows = [{"method": name, **row} for name, row in rows.items()] if isinstance(rows, dict) else rows
        named = all(isinstance(row["method"], str) for row in rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as a summary.json of compute_metrics.py ({type(error).__name__}: {error}).") from None
    if not rows or not named:
        raise UserError(f"{path}: has no run.")
    return rows


def read_per_prompt(path: Path) -> list[Row]:
    """Return the rows of per_prompt.jsonl. Raises UserError, with file and line, for a row without what is drawn."""
    rows = []
    for where, row in read_jsonl(path):
        require(row, where, {"method": str, DISTANCE: (float, type(None)), f"success_{DISTANCE}": (float, type(None))})
        rows.append(row)
    return rows


def chosen_k(rows: Iterable[Row], asked: int | None) -> int:
    """Return the k of the scatter plots: what was asked for, else 8, or where no prompt has pass@8 the largest k some prompt has."""
    ks = {int(name.removeprefix("pass@")) for row in rows for name in row if name.startswith("pass@") and row[name] is not None}
    if not ks or (asked is not None and asked not in ks):
        raise UserError(f"--scatter-k {asked}: per-prompt rows have pass@k for k = {', '.join(map(str, sorted(ks))) or 'nothing'}.")
    return asked or (DEFAULT_K if DEFAULT_K in ks else max(ks))


def work(options: argparse.Namespace) -> None:
    """Draw and write all plots. Raises UserError for files that cannot be read."""
    summary, rows = read_summary(options.summary), read_per_prompt(options.per_prompt)
    k = chosen_k(rows, options.scatter_k)
    rows = [{f"pass@{k}": None, **row} for row in rows]
    figures = {
        "passk_curve": passk_curve(summary),
        "method_diversity_bars": method_diversity_bars(summary),
        "diversity_vs_passk": diversity_vs_passk(rows, DISTANCE, k),
        "success_diversity_vs_passk": diversity_vs_passk(rows, f"success_{DISTANCE}", k),
    }
    save(figures, options.output_dir)
    for name in figures:
        print(options.output_dir / f"{name}.png")
    (passed,) = defined([row for row in rows if row[f"success_{DISTANCE}"] is not None], f"pass@{k}")
    if len(passed) and np.ptp(passed) == 0:
        print(f"note: pass@{k} is {passed[0]:g} wherever two responses pass: a smaller --scatter-k says more in success_diversity_vs_passk")


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--summary", type=Path, required=True, help="summary.json of compute_metrics.py")
    parser.add_argument("--per-prompt", type=Path, required=True, help="per_prompt.jsonl of compute_metrics.py")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--scatter-k", type=int, help="the k of the scatter plots; default: 8, or the largest there is")
    return command.main(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
