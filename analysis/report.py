"""Is a run's teacher right, and how does that change while it trains? The whole analysis by one command.

    python -m analysis.report NAME [--steps 0 20 40]

NAME is a run's name (logs/NAME, validation/NAME and checkpoints/NAME are there) or its folder of checkpoints. Takes each
step whose validation was dumped and whose weights are there (0: the model it began with) through the commands of this
folder, printed as they are called: groups, contexts, scores, metrics, figures. Then report.md: AUC by condition and step, and
what each peer adds. What is made already is kept: a call that was interrupted goes on. docs/teacher_signal.md explains the numbers.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from analysis import (
    build_context_variants,
    command,
    compute_teacher_signal_metrics,
    plot_teacher_metrics,
    prepare_rollout_dataset,
    runs,
    score_teacher_contexts,
)
from analysis.compute_teacher_signal_metrics import cell
from analysis.plot_teacher_metrics import KINDS, SCORES, STEPS, kind_of
from analysis.reader import find
from analysis.rows import write_json, write_text
from analysis.runs import Run
from analysis.scored import BASE, COMPARED
from trainer import models
from trainer.config import to_yaml
from trainer.errors import UserError

CONDITIONS = tuple(name for name in COMPARED if name != "failure_only")  # that shows what failure_solution shows
SHORT = {
    "solution": "1S",
    "solution+another_solution": "2S",
    "failure_solution": "1F",
    "solution+failure_solution": "1S+1F",
    "solution+another_solution+failure_solution": "2S+1F",
}
LADDER = ((BASE, "failure_solution"), (BASE, "solution"), *STEPS)  # what each peer adds
SET = "mixed_paired"
FIGURE = "auc_by_step"
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Stage:
    """A step of the run: its dump, the weights that sampled it, where what is made of them stands, and what was found."""

    step: int
    dump: Path
    weights: Path
    folder: Path
    averaged: bool  # an EMA teacher scores

    def result(self) -> dict[str, Any]:
        """Return what compute_teacher_signal_metrics.py wrote."""
        return json.loads((self.folder / "metrics.json").read_text())


def stages(run: Run, asked: Sequence[int] | None, out: Path, *, training: bool) -> list[Stage]:
    """Return the steps whose rollouts and the weights that sampled them are both there: `asked`, or all.

    Validation at step N is by the weights after N steps, training's step N by those after N - 1.
    Raises UserError if there is none, or one asked for is not among them, saying what there is.
    """
    folder = run.rollouts if training else run.validation
    dumps, weights = runs.dumped(folder), run.weights()
    there = {step: weights[step - training] for step in dumps if step - training in weights}
    missing = [step for step in asked or () if step not in there]
    if missing or not there:
        wanted = f"step {', '.join(map(str, missing))}" if missing else "any step"
        left = f"{runs.ranges(list(weights)) or 'no step'}{run.broken()}"
        raise UserError(
            f"{run.name}: of {wanted} there are not both the rollouts and the weights that sampled them. {folder} has the rollouts of "
            f"{runs.ranges(dumps) or 'no step'}, {run.checkpoints} the weights after {left}. "
            "The settings trainer.test_freq, save_freq and max_actor_ckpt_to_keep say which are kept; "
            + (
                "validation by itself leaves its dumps: bash run_eval_sdpo.sh."
                if not training
                else "--training takes each step with the one before."
            )
        )
    chosen = sorted(set(asked or there))
    return [Stage(step, folder / f"{step}.jsonl", there[step], out / f"step{step}", find(str(there[step])).averaged) for step in chosen]


def analyse(stage: Stage, run: Run, out: Path, options: argparse.Namespace) -> None:
    """Make what is missing of a step's groups, contexts and scores; then its metrics and figures."""
    _claim(stage, run, options.conditions)
    here, distill, rollout = stage.folder, run.config.actor_rollout_ref.actor.self_distillation, run.config.actor_rollout_ref.rollout
    candidates, evidence = here / "candidate_responses.jsonl", here / "evidence_items.jsonl"
    variants, scores = here / "context_variants.jsonl", here / "scores.jsonl"
    per_prompt = ("--max-responses-per-prompt", max(rollout.n, rollout.val_kwargs.n))
    threshold = ("--success-threshold", distill.success_reward_threshold)
    model = ("--model", stage.weights, "--settings", out / "config.yaml")
    device = [*("--dtype", options.dtype), *(("--device", options.device) if options.device else ())]
    _make(candidates, prepare_rollout_dataset, "--input", stage.dump, "--output-dir", here, *per_prompt, *threshold)
    shown = ("--candidates", candidates, "--evidence", evidence, "--conditions", *options.conditions)
    _make(variants, build_context_variants, *model, *shown, "--output", variants)
    asked = ("--variants", variants, "--targets", candidates, "--self-target-only", "--engine", options.engine, *device)
    _make(scores, score_teacher_contexts, *model, *asked, "--output", scores)
    measured, few = here / "metrics.json", ("--num-bootstrap", options.num_bootstrap)
    tables = ("--table-sample-set", SET, "--compare", *options.conditions)
    _call(compute_teacher_signal_metrics, "--input", scores, "--output", measured, *tables, *few)
    if stage.result()["sample_sets"][SET]["conditions"]:
        _call(plot_teacher_metrics, "--input", measured, "--output-dir", here / "plots", "--sample-set", SET)


def _claim(stage: Stage, run: Run, conditions: Sequence[str]) -> None:
    """Note what a step's files are made of; raise UserError if those that are there are made of something else."""
    config = run.config
    with stage.dump.open("rb") as file:
        dump = hashlib.file_digest(file, "sha256").hexdigest()
    made_of = {
        "rollouts": dump,
        "weights": models.check_weights(find(str(stage.weights)).path, "weights"),
        "conditions": list(conditions),
        "self_distillation": asdict(config.actor_rollout_ref.actor.self_distillation),
        "apply_chat_template_kwargs": config.data.apply_chat_template_kwargs,
        "seed": config.data.seed,
    }
    note = stage.folder / "made_of.json"
    made_of = json.loads(json.dumps(made_of))
    if note.is_file() and (before := json.loads(note.read_text())) != made_of:
        other = ", ".join(key for key in made_of if before.get(key) != made_of[key])
        raise UserError(f"{stage.folder}: was made of other {other}. Give another --out, or remove it.")
    write_json(note, made_of)


def _make(out: Path, module: ModuleType, *arguments: object) -> None:
    if out.exists():
        print(f"{out}: is there")
    else:
        _call(module, *arguments)


def _call(module: ModuleType, *arguments: object) -> None:
    """Call a command as typed; end with its status if it fails, having said why."""
    typed = list(map(str, arguments))
    print("+ python -m", module.__name__, shlex.join(typed), flush=True)
    if status := module.main(typed):
        sys.exit(status)


# ---- the page ----


def conditions_of(result: Mapping[str, Any], score: str) -> Mapping[str, Any]:
    """Return the entries of `mixed_paired` by condition; none where there is no advantage."""
    data = result["sample_sets"][SET]
    return data["conditions"] if score == "teacher" else data.get(score, {}).get("conditions", {})


def differences_of(result: Mapping[str, Any]) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """Return the paired differences of the AUC in `mixed_paired` by first condition, second, and score."""
    rows = result["sample_sets"][SET]["paired_differences"]
    return {(row["first"], row["second"], row["score"]): row for row in rows if row["metric"] == "success_auc" and row["prompts"]}


def named(condition: str) -> str:
    """Return a condition with its short name."""
    return f"`{condition}`" + (f" ({SHORT[condition]})" if condition in SHORT else "")


def difference_cell(row: Mapping[str, Any] | None) -> str:
    """Return `difference [low, high], prompts up : down : equal, p`."""
    if row is None:
        return "-"
    low, high = row["ci"]
    interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
    p = "" if row["sign_test_p"] is None else f", p {row['sign_test_p']:.2g}"
    return f"{row['mean_difference']:+.3f}{interval}; {row['higher']}:{row['lower']}:{row['equal']}{p}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def page(run: Run, found: Sequence[Stage], conditions: Sequence[str], *, training: bool) -> str:
    """Return report.md."""
    results = {stage.step: stage.result() for stage in found}
    steps = [f"step {step}" for step in results]
    kind = "training" if training else "validation"
    parts = [
        f"# {run.name}: is its teacher right?",
        f"The {kind}'s rollouts, scored behind each context by the weights that sampled them, at temperature 1. Mean over prompts "
        "with 95 % intervals over prompts, and how many define it. Sample set "
        f"`{SET}`: the same responses under every condition, of prompts with enough successes and failures for all of them. As a "
        "run learns fewer prompts are mixed: steps are not of the same prompts.",
        "\n".join(f"- {_of_stage(stage, results[stage.step], run)}" for stage in found),
    ]
    for score, (_, _, label) in SCORES.items():
        entries = [conditions_of(result, score) for result in results.values()]
        if any(entries):
            rows = [[named(name), *(cell(of[name], "success_auc") if name in of else "-" for of in entries)] for name in conditions]
            parts += [f"## AUC of the {label}" if score == "advantage" else f"## AUC of {label}", table(["condition", *steps], rows)]
    if any(result["sample_sets"][SET]["conditions"] for result in results.values()):
        parts.append(f"![AUC by step]({FIGURE}.png)")
    ladder = [pair for pair in LADDER if set(pair) <= set(conditions)]
    differences = [differences_of(result) for result in results.values()]
    rows = [
        [f"{SHORT.get(first, first)} to {SHORT[second]}", score, *(difference_cell(of.get((first, second, score))) for of in differences)]
        for first, second in ladder
        for score in SCORES
        if any((first, second, score) in of for of in differences)
    ]
    if rows:
        parts += [
            "## What each peer adds",
            "Paired differences of the AUC on the same prompts; prompts higher : lower : equal; p of the sign test, uncorrected.",
            table(["", "score", *steps], rows),
        ]
    notes = {note: None for result in results.values() for note in result["notes"]}
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _of_stage(stage: Stage, result: Mapping[str, Any], run: Run) -> str:
    fixed = run.config.actor_rollout_ref.ref.model.path
    teacher = "its EMA teacher" if stage.averaged else "the teacher has the student's weights"
    if stage.step and not stage.averaged and fixed:
        teacher = f"**scored by the student's weights: the run's own teacher was the fixed model {fixed}**"
    mixed = result["both_present_prompt_count"]
    return f"step {stage.step}: `{stage.dump}` by `{stage.weights}`, {teacher}; {mixed} groups with a success and a failure"


def figure(found: Sequence[Stage], conditions: Sequence[str]) -> Figure:
    """Draw the AUC of both scores by step, a line for each condition, with intervals."""
    results = {stage.step: stage.result() for stage in found}
    drawn, panels = pyplot.subplots(1, len(SCORES), figsize=(12, 4.6), sharey=True, layout="constrained")
    for (score, (_, _, label)), axes in zip(SCORES.items(), panels, strict=True):
        for place, name in enumerate(conditions):
            points = [
                (at + 0.03 * (place - len(conditions) / 2), entry["success_auc"], entry["success_auc_ci"])
                for at, result in enumerate(results.values())
                if (entry := conditions_of(result, score).get(name)) and entry["success_auc"] is not None
            ]
            alike = [other for other in conditions[:place] if kind_of(other) == kind_of(name)]
            look = {"color": KINDS[kind_of(name)][0], "marker": MARKERS[place % len(MARKERS)], "markersize": 5}
            xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
            axes.plot(xs, ys, label=SHORT.get(name, name), linestyle=("-", "--", ":", "-.")[len(alike) % 4], **look)
            for x, _, (low, high) in points:
                if low is not None:
                    axes.plot([x, x], [low, high], color=look["color"], linewidth=0.9)
        axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(label, fontsize="small")
        axes.set_xticks(
            range(len(results)), [f"step {step}\n{_prompts(result)} prompts" for step, result in results.items()], fontsize="small"
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("AUC, success over failure")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize="small")
    drawn.suptitle(f"{SET}: mean over prompts with 95 % interval; dotted: a score that knows nothing", fontsize="medium")
    return drawn


def _prompts(result: Mapping[str, Any]) -> int:
    return max((entry["count_prompts"] for entry in conditions_of(result, "teacher").values()), default=0)


def report(options: argparse.Namespace) -> None:
    """Do what the command says."""
    run = runs.find_run(options.run, options.set)
    out = options.out or Path("analysis_outputs") / run.name
    found = stages(run, options.steps, out, training=options.training)
    for stage in found:
        _claim(stage, run, options.conditions)  # all of them before the first is scored
    write_text(out / "config.yaml", to_yaml(run.config))
    for stage in found:
        analyse(stage, run, out, options)
    matplotlib.use("Agg")
    if any(conditions_of(stage.result(), "teacher") for stage in found):
        plot_teacher_metrics.save({FIGURE: figure(found, options.conditions)}, out)
    text = page(run, found, options.conditions, training=options.training)
    write_text(out / "report.md", text)
    print(f"\n{text}\nwrote {out / 'report.md'}; tables and figures of each step beside it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser_of(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's name, its folder of checkpoints, or one global_step_N of it")
    parser.add_argument("--steps", nargs="+", type=command.not_negative, metavar="STEP", help="only these (default: all that can be)")
    parser.add_argument("--training", action="store_true", help="the rollouts of training (rollouts/NAME) instead of validation's")
    parser.add_argument("--out", type=Path, help="default: analysis_outputs/NAME")
    parser.add_argument(
        "--conditions", nargs="+", default=list(CONDITIONS), metavar="CONDITION", help="what is compared (default: base and five contexts)"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the run to change, as for training")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    parser.add_argument("--num-bootstrap", type=command.positive, default=2000, help="resamples of the prompts (default 2000)")
    command.add_device(parser)
    return command.main(parser, report, arguments)


if __name__ == "__main__":
    sys.exit(main())
