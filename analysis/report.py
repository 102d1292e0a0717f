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
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import ModuleType
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.figure import Figure

from analysis import (
    build_context_variants,
    command,
    compute_teacher_signal_metrics,
    conditions,
    plot_teacher_metrics,
    prepare_rollout_dataset,
    runs,
    score_teacher_contexts,
)
from analysis.compute_teacher_signal_metrics import cell, difference_cells, line
from analysis.plot_teacher_metrics import KINDS, SCORES, STEPS, kind_of
from analysis.reader import Reader, find
from analysis.rows import read_jsonl, write_json, write_text
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
    """A step of the run: its dump, the student that sampled it, and the folder for what is made of them.

    `student` is None where the weights are gone and their scores are here. `trained` is how many steps the student had behind it.
    """

    step: int
    dump: Path
    folder: Path
    trained: int
    student: Reader | None

    @property
    def scores(self) -> Path:
        return self.folder / "scores.jsonl"

    @property
    def note(self) -> Path:
        return self.folder / "made_of.json"

    def made_of(self) -> dict[str, Any]:
        """Return what the folder's files are made of; empty if there are none."""
        return json.loads(self.note.read_text()) if self.note.is_file() else {}

    def result(self) -> dict[str, Any]:
        """Return what compute_teacher_signal_metrics.py wrote."""
        return json.loads((self.folder / "metrics.json").read_text())


def stages(run: Run, asked: Sequence[int] | None, out: Path, *, training: bool) -> tuple[list[Stage], list[str]]:
    """Return the steps whose rollouts are there with the weights that sampled them (or with their scores): `asked`, or all that
    can be; and what to say of those left out.

    Validation at step N is by the weights after N steps, training's step N by those after N - 1, and after N - 2 where it was
    sampled a step ahead. Raises UserError if there is none, or one asked for is not among them, saying what there is.
    """
    folder, behind = run.validation, 0
    if training:
        folder, behind = run.rollouts, 1 + run.config.trainer.rollout_overlap
    dumps, weights = runs.dumped(folder), run.weights()
    found, left_out = [], {}
    for step in sorted(set(asked)) if asked else dumps:
        trained = max(step - behind, 0)
        stage = Stage(step, folder / f"{step}.jsonl", out / f"step{step}", trained, None)
        if step not in dumps:
            left_out[step] = "not dumped"
        elif trained in weights:
            found.append(replace(stage, student=run.student(trained)))
        elif stage.scores.is_file() and stage.made_of().get("rollouts") == _hash(stage.dump):
            found.append(stage)
        elif trained == 0 and run.checkpoint is None:
            try:
                found.append(replace(stage, student=_from_the_hub(run)))
            except UserError as error:
                left_out[step] = str(error)
        else:
            left_out[step] = f"no weights after {trained} steps"
    said = [f"left out: step {runs.ranges(steps)}, {why}" for why, steps in _by_reason(left_out).items()]
    if not found or (asked and left_out):
        held = f"has the rollouts of step {runs.ranges(dumps)}" if dumps else "holds no rollouts" if folder.is_dir() else "is no folder"
        raise UserError(
            f"{run.name}: {'; '.join(said) or 'nothing to analyse'}. {folder} {held}; {run.checkpoints} and the model the run began with "
            f"are the weights after {runs.ranges(list(weights)) or 'no step'}{run.broken()}. trainer.test_freq, save_freq and "
            "max_actor_ckpt_to_keep say which are kept; a checkpoint is validated later with CKPT_PATH=.../global_step_N "
            f"VALIDATION_DATA_DIR={run.validation} bash run_eval_sdpo.sh."
        )
    return found, said


def _by_reason(left_out: Mapping[int, str]) -> dict[str, list[int]]:
    return {why: [step for step, other in left_out.items() if other == why] for why in left_out.values()}


def _from_the_hub(run: Run) -> Reader:
    """Return the model a run began with where it is no folder here. Raises UserError if it cannot be had."""
    model = run.config.actor_rollout_ref.model
    models.resolve(model.path, "actor_rollout_ref.model.path", trust_remote_code=model.trust_remote_code)
    return find(model.path)


def analyse(stage: Stage, run: Run, out: Path, options: argparse.Namespace) -> None:
    """Make what is missing of a step's groups, contexts and scores; then its metrics and figures."""
    here = stage.folder
    if stage.student is not None:
        _score(stage, stage.student, run, out, options)
    few, tables = ("--num-bootstrap", options.num_bootstrap), ("--table-sample-set", SET, "--compare", *options.conditions)
    before = stage.result() if (here / "plots").is_dir() else None
    _call(compute_teacher_signal_metrics, "--input", stage.scores, "--output", here / "metrics.json", *tables, *few)
    if conditions_of(stage.result(), "teacher") and stage.result() != before:
        _call(plot_teacher_metrics, "--input", here / "metrics.json", "--output-dir", here / "plots", "--sample-set", SET)


def _score(stage: Stage, student: Reader, run: Run, out: Path, options: argparse.Namespace) -> None:
    here, teacher = stage.folder, runs.teacher_of(run, student)
    candidates, evidence, variants = here / "candidate_responses.jsonl", here / "evidence_items.jsonl", here / "context_variants.jsonl"
    threshold = ("--success-threshold", run.config.actor_rollout_ref.actor.self_distillation.success_reward_threshold)
    cap = ("--max-responses-per-prompt", stage.made_of()["responses_per_prompt"])
    settings: list[object] = ["--set", *options.set] if options.set else []
    if not stage.trained and run.checkpoint is None:
        settings += ["--settings", out / "config.yaml"]
    # evidence is renamed last: where it is, the candidates are
    _make(evidence, prepare_rollout_dataset, "--input", stage.dump, "--output-dir", here, *cap, *threshold)
    shown = ("--candidates", candidates, "--evidence", evidence, "--conditions", *options.conditions)
    _make(variants, build_context_variants, "--model", _place(student), *settings, *shown, "--output", variants)
    who = ("--model", _place(teacher.reader), "--teacher", teacher.weights, *settings)
    how = ("--self-target-only", "--engine", options.engine, "--device", options.device, "--dtype", options.dtype)
    _make(stage.scores, score_teacher_contexts, *who, "--variants", variants, "--targets", candidates, *how, "--output", stage.scores)


def _place(reader: Reader) -> Path | str:
    """Return what --model calls a reader."""
    return reader.checkpoint or (Path(reader.path).resolve() if Path(reader.path).is_dir() else reader.path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def claim(stage: Stage, run: Run, options: argparse.Namespace) -> None:
    """Note what a step's files are made of. What little is there of something else is made again; scores are not thrown away.

    Raises UserError if there are scores of something else, or if no prompt has two responses.
    """
    before, config = stage.made_of(), run.config
    sizes, sources = Counter(), set()
    for _, row in read_jsonl(stage.dump, {"uid": str, "data_source": str}):
        sizes[row["uid"]] += 1
        sources.add(row["data_source"])
    largest = max(sizes.values(), default=0)
    if largest < 2:
        raise UserError(
            f"{stage.dump}: has {largest} response a prompt; successes and failures of one prompt are compared, so two are the least. "
            "actor_rollout_ref.rollout.val_kwargs.n (EVAL_N) says how many; --training takes the rollouts of training."
        )
    made_of = {
        "rollouts": _hash(stage.dump),
        "sources": sorted(sources),
        "responses_per_prompt": largest,
        "conditions": sorted(options.conditions),
        "engine": options.engine,
        "dtype": options.dtype,
        "self_distillation": asdict(config.actor_rollout_ref.actor.self_distillation),
        "apply_chat_template_kwargs": config.data.apply_chat_template_kwargs,
        "seed": config.data.seed,
    }
    if stage.student is None:
        made_of |= {key: before[key] for key in ("weights", "scored_by")}
    else:
        teacher = runs.teacher_of(run, stage.student)
        made_of["weights"] = [models.check_weights(reader.path, "weights") for reader in (stage.student, teacher.reader)]
        made_of["scored_by"] = f"rollouts of `{_place(stage.student)}`; teacher: {teacher.what}"
        if teacher.reader != stage.student:
            made_of["scored_by"] += ", whose advantage is over its own score without peers and not the student's"
    made_of = json.loads(json.dumps(made_of))
    if other := [key for key in made_of if key != "scored_by" and before.get(key) != made_of[key]]:
        if before and (stage.scores.exists() or stage.scores.with_name(f"{stage.scores.name}.progress").exists()):
            raise UserError(f"{stage.folder}: its scores were made of other {', '.join(other)}. Give another --out, or remove the folder.")
        for name in ("candidate_responses.jsonl", "evidence_items.jsonl", "context_variants.jsonl"):
            (stage.folder / name).unlink(missing_ok=True)
    write_json(stage.note, made_of)


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


def difference(row: Mapping[str, Any] | None) -> str:
    """Return a paired difference as one cell."""
    if row is None:
        return "-"
    _, value, directions, p = difference_cells(row)
    return f"{value}; {directions}; p {p}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(map(line, [head, ["---"] * len(head), *rows]))


def page(run: Run, found: Sequence[Stage], conditions: Sequence[str], left_out: Sequence[str], *, training: bool) -> str:
    """Return report.md."""
    results = {stage.step: stage.result() for stage in found}
    steps = [f"step {step}" for step in results]
    kind = "training" if training else "validation"
    parts = [
        f"# {run.name}: is its teacher right?",
        f"The {kind}'s rollouts, scored behind each context by the teacher that is named beside them, at temperature 1. Mean over prompts "
        "with 95 % intervals over prompts, and how many define it. Sample set "
        f"`{SET}`: the same responses under every condition, of prompts with enough successes and failures for all of them. As a "
        "run learns fewer prompts are mixed: steps are not of the same prompts, and an interval over a few that agree has no width and "
        "says nothing.",
        "\n".join(f"- {_of_stage(stage, results[stage.step])}" for stage in found),
    ]
    for score, (_, _, label) in SCORES.items():
        entries = [conditions_of(result, score) for result in results.values()]
        if any(entries):
            rows = [[named(name), *(cell(of[name], "success_auc") if name in of else "-" for of in entries)] for name in conditions]
            parts += [f"## AUC: {label}", table(["condition", *steps], rows)]
    if any(result["sample_sets"][SET]["conditions"] for result in results.values()):
        parts.append(f"![AUC by step]({FIGURE}.png)")
    ladder = [pair for pair in LADDER if set(pair) <= set(conditions)]
    differences = [differences_of(result) for result in results.values()]
    rows = [
        [f"{SHORT.get(first, first)} to {SHORT[second]}", score, *(difference(of.get((first, second, score))) for of in differences)]
        for first, second in ladder
        for score in SCORES
        if any((first, second, score) in of for of in differences)
    ]
    if rows:
        parts += [
            "## What each peer adds",
            "Paired differences of the AUC on the same prompts; prompts higher / lower / equal; p of the sign test, uncorrected.",
            table(["", "score", *steps], rows),
        ]
    notes = dict.fromkeys([*left_out, *(f"step {step}: {note}" for step, result in results.items() for note in result["notes"])])
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _of_stage(stage: Stage, result: Mapping[str, Any]) -> str:
    made_of = stage.made_of()
    sources = made_of["sources"]
    together = f"; {len(sources)} sources together ({', '.join(sources)})" if len(sources) > 1 else ""
    mixed = f"{result['both_present_prompt_count']} prompts with a success and a failure"
    return f"step {stage.step}: `{stage.dump}`, {made_of['scored_by']}; {mixed}{together}"


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
    """Do what the command says; the page is of the steps that were finished, also if a later one fails."""
    conditions.named(options.conditions)
    options.conditions = list(dict.fromkeys(options.conditions))
    command.resolve_device(options)
    run = runs.find_run(options.run, options.set)
    kind = "training" if options.training else "validation"
    out = options.out or Path("analysis_outputs") / (f"{run.name}-training" if options.training else run.name)
    found, left_out = stages(run, options.steps, out, training=options.training)
    whose, mine = out / "report.json", {"run": run.name, "rollouts": kind}
    if whose.is_file() and (other := json.loads(whose.read_text())) != mine:
        raise UserError(f"--out {out}: holds the report of {other['run']}'s {other['rollouts']}, not of {run.name}'s {kind}.")
    for stage in found:
        claim(stage, run, options)  # all of them before the first is scored
    write_json(whose, mine)
    write_text(out / "config.yaml", to_yaml(run.config))
    print(f"{run.name}: {kind} at step {runs.ranges([stage.step for stage in found])}", *left_out, sep="\n  ")
    finished: list[Stage] = []
    try:
        for stage in found:
            analyse(stage, run, out, options)
            finished.append(stage)
    finally:
        if finished:
            _write(out, run, finished, options, left_out)


def _write(out: Path, run: Run, found: Sequence[Stage], options: argparse.Namespace, left_out: Sequence[str]) -> None:
    matplotlib.use("Agg")
    if any(conditions_of(stage.result(), "teacher") for stage in found):
        plot_teacher_metrics.save({FIGURE: figure(found, options.conditions)}, out)
    text = page(run, found, options.conditions, left_out, training=options.training)
    write_text(out / "report.md", text)
    print(f"\n{text}\nwrote {out / 'report.md'}; tables and figures of each step beside it")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = command.parser_of(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's name, its folder of checkpoints, or one global_step_N of it")
    parser.add_argument("--steps", nargs="+", type=command.not_negative, metavar="STEP", help="only these (default: all that can be)")
    parser.add_argument("--training", action="store_true", help="the rollouts of training (rollouts/NAME) instead of validation's")
    parser.add_argument("--out", type=Path, help="default: analysis_outputs/NAME, with --training NAME-training")
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
