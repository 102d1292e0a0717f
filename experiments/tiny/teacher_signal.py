"""Is the embedded default's teacher right? Every condition, three seeds, before training and in its middle.

    python -m experiments.tiny.teacher_signal [--work analysis_outputs/teacher_signal]

Types the commands of docs/teacher_signal.md, one after the other: for each seed a run of the embedded default, then 8
rollouts for each of its 128 test prompts by the base model and by the checkpoint of step 10, their groups, contexts and
scores; then metrics over the seeds, as published too. Writes the tables into docs/teacher_signal.md and the figures
beside it. What is in the work folder already is not made again. Ten to twelve minutes on two cores.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.report import CONDITIONS as PEERS
from analysis.report import LADDER, SHORT
from trainer.files import write_text

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "teacher_signal.md"
SEEDS = (1, 2, 3)
STEPS = (0, 10)  # checkpoints: the base model, and one that has learnt about half
LAYOUTS = {"chat": [], "legacy": ["--legacy-contexts"]}
OTHERS = (
    "base_reprompt",
    "another_solution",
    "summary_success_k2",
    "solution+summary_success_k2",
    "solution+feedback+summary_all_k2",
    "random_summary_control",
    "random_peer",
    "verifier_score_ordered",
)  # the tiny task has no feedback: its conditions would show what others show
CONDITIONS = [*PEERS, *OTHERS]
FIGURES = ("metrics_main", "paired_differences")
PUBLISHED = ("solution", "solution+failure_solution", "failure_solution")  # whose AUCs the issue quotes: .78, .44, .04


def run(out: Path, *command: object, **flags: object) -> None:
    """Run a command that makes `out`, unless that is there."""
    if out.exists():
        return
    print("+", *(f"{name}={value}" for name, value in flags.items()), shlex.join(map(str, command)), flush=True)
    environment = {**os.environ, **{name: str(value) for name, value in flags.items()}}
    subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def scored(work: Path, seed: int, step: int) -> dict[str, Path]:
    """Return the scored files of a seed and step by layout, made with the commands of the page."""
    here, trained = work / f"seed{seed}", work / f"seed{seed}" / "checkpoints"
    quiet = {"WANDB_MODE": "disabled", "SEED": seed}
    folders = {"CKPT_DIR": trained, "ROLLOUT_DATA_DIR": here / "rollouts", "VALIDATION_DATA_DIR": here / "validation"}
    train = ("bash", "run_local_sdpo.sh", f"teacher-signal-{seed}", "trainer.save_freq=10", "trainer.max_actor_ckpt_to_keep=4")
    run(trained / "global_step_40", *train, f"trainer.log_dir={here}/logs", **folders, **quiet)

    at = here / f"step{step}"
    model = trained / f"global_step_{step}" if step else Path("models/tiny-chains")
    limits = {"ROLLOUT_PROMPT_LENGTH": 32, "ROLLOUT_RESPONSE_LENGTH": 48, "DATA_PATH": "datasets/tiny_chains", "EVAL_N": 8}
    sampling = {"CKPT_PATH": model, "VALIDATION_DATA_DIR": at / "validation", **limits, **quiet}
    run(at / "validation" / f"{step}.jsonl", "bash", "run_eval_sdpo.sh", "teacher-signal", f"trainer.log_dir={at}/logs", **sampling)
    candidates, evidence = at / "candidate_responses.jsonl", at / "evidence_items.jsonl"
    run(candidates, sys.executable, "analysis/prepare_rollout_dataset.py", "--input", at / "validation", "--output-dir", at)
    out = {}
    for layout, flags in LAYOUTS.items():
        variants, out[layout] = at / f"variants_{layout}.jsonl", at / f"scores_{layout}.jsonl"
        build = ("--model", model, "--candidates", candidates, "--evidence", evidence, "--output", variants, *flags)
        budget = () if step else ("--set", "actor_rollout_ref.actor.self_distillation.max_reprompt_len=256")  # a checkpoint knows its own
        run(variants, sys.executable, "analysis/build_context_variants.py", *build, *budget)
        ask = ("--model", model, "--self-target-only", "--variants", variants, "--targets", candidates, "--output", out[layout], *flags)
        run(out[layout], sys.executable, "analysis/score_teacher_contexts.py", *ask)
    return out


def metrics(out: Path, files: Sequence[Path], *flags: object) -> dict[str, Any]:
    """Return the metrics of scored files."""
    command = ("--input", *files, "--output", out, "--compare", *CONDITIONS, "--table-sample-set", "mixed_paired")
    run(out, sys.executable, "analysis/compute_teacher_signal_metrics.py", *command, *flags)
    return json.loads(out.read_text())


def table(pooled: Mapping[str, Any], by_seed: Sequence[Mapping[str, Any]]) -> str:
    """Return the AUCs of `mixed_paired` over the seeds' groups together, and of the advantage seed by seed."""

    def entries(result: Mapping[str, Any], score: str) -> Mapping[str, Any]:
        data = result["sample_sets"]["mixed_paired"]
        return (data if score == "teacher" else data["advantage"])["conditions"]

    def auc(entry: Mapping[str, Any]) -> str:
        low, high = entry["success_auc_ci"]
        return f"{entry['success_auc']:.3f} [{low:.3f}, {high:.3f}]"

    against_base = {
        row["second"]: row
        for row in pooled["sample_sets"]["mixed_paired"]["paired_differences"]
        if (row["score"], row["metric"], row["first"]) == ("teacher", "success_auc", "base")
    }
    head = "| condition | AUC of the teacher's score | minus `base`, paired | AUC of the advantage | seed by seed |"
    lines = [head, "|---|---|---|---|---|"]
    for name, entry in entries(pooled, "teacher").items():
        difference = against_base.get(name)
        low, high = difference["ci"] if difference else (0, 0)
        minus = f"{difference['mean_difference']:+.3f} [{low:+.3f}, {high:+.3f}]" if difference else ""
        seeds = ", ".join(f"{entries(one, 'advantage')[name]['success_auc']:.3f}" for one in by_seed)
        label = f"`{name}`" + (f" ({SHORT[name]})" if name in SHORT else "")
        lines.append(f"| {label} | {auc(entry)} | {minus} | {auc(entries(pooled, 'advantage')[name])} | {seeds} |")
    one = entries(pooled, "teacher")["base"]
    groups = f"{one['count_groups']} groups of {one['count_prompts']} prompts; intervals over prompts."
    return "\n".join([*lines, "", groups, ""])


def ladder(pooled: Mapping[str, Any]) -> str:
    """Return what each further peer adds to the AUC of both scores, on the same prompts."""
    found = {
        (row["first"], row["second"], row["score"]): row
        for row in pooled["sample_sets"]["mixed_paired"]["paired_differences"]
        if row["metric"] == "success_auc"
    }
    head = "| | teacher's score | better, worse, equal | p | advantage | better, worse, equal | p |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for first, second in LADDER:
        cells = [f"{SHORT.get(first, first)} to {SHORT[second]}"]
        for score in ("teacher", "advantage"):
            row = found[first, second, score]
            low, high = row["ci"]
            p = "-" if row["sign_test_p"] is None else f"{row['sign_test_p']:.2g}"
            cells += [f"{row['mean_difference']:+.3f} [{low:+.3f}, {high:+.3f}]", f"{row['higher']}, {row['lower']}, {row['equal']}", p]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def published(found: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """Return the AUCs of `effective_only` by layout and convention: what the published analysis would report of these rollouts."""
    lines = [f"| layout | groups without an AUC | {' | '.join(SHORT[name] for name in PUBLISHED)} |", "|---|---|---|---|---|"]
    for (layout, convention), result in found.items():
        entries = [result["sample_sets"]["effective_only"]["conditions"][name] for name in PUBLISHED]
        cells = [f"{entry['success_auc']:.3f} ({entry['success_auc_count']} of {entry['count_prompts']})" for entry in entries]
        lines.append(f"| {layout} | {convention} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def fill(tables: Mapping[str, str]) -> None:
    """Put the tables between their marks in the page."""
    page = PAGE.read_text()
    for name, text in tables.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark and end, f"{PAGE} has no place for {name!r}"
        page = f"{before}{mark}{text}{end}{after}"
    write_text(PAGE, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("analysis_outputs/teacher_signal"), help="where everything in between stands")
    options = parser.parse_args()
    work, tables = options.work.resolve(), {}
    for step in STEPS:
        files = [scored(work, seed, step) for seed in SEEDS]
        pooled = metrics(work / f"step{step}.json", [one["chat"] for one in files])
        by_seed = [metrics(work / f"step{step}_seed{seed}.json", [one["chat"]]) for seed, one in zip(SEEDS, files, strict=True)]
        tables |= {f"step {step}": table(pooled, by_seed), f"step {step}, ladder": ladder(pooled)}
        found = {}
        for layout in LAYOUTS:
            for name, flags in {"left out": (), "count as 0": ("--legacy-degenerate",)}.items():
                same = [one[layout] for one in files]
                found[layout, name] = metrics(work / f"step{step}_{layout}_{name.replace(' ', '_')}.json", same, *flags)
        tables[f"step {step}, published"] = published(found)
        plots = work / f"plots{step}"
        draw = ("--input", work / f"step{step}.json", "--output-dir", plots, "--sample-set", "mixed_paired", "--conditions", *CONDITIONS)
        run(plots, sys.executable, "analysis/plot_teacher_metrics.py", *draw)
        for figure in FIGURES:
            shutil.copy(plots / f"teacher_{figure}.png", PAGE.with_suffix("") / f"step{step}_{figure}.png")
    fill(tables)
    print(f"tables and figures: {PAGE}")


if __name__ == "__main__":
    main()
