"""MOPD, SDPO and GRPO at equal rollouts on the two tiny tasks: runs everything and writes README.md beside this file.

    python -m experiments.tiny.compare [--tasks chains misconceptions] [--workers 2] [--report-only]

For each task and method one learning rate is chosen from GRID by the mean final mean@8 over SELECTION_SEEDS x BASES on
the selection set; the reported numbers come from FINAL_SEEDS x BASES on the final set, which no choice has seen. Within
a (base, seed) pair all methods see the same prompts in the same order and sample with the same seeds. Finished runs
are kept in results/<task>.jsonl, so an interrupted comparison goes on where it was.
"""

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data.preprocess import to_row, write_parquet
from experiments.tiny import chains, misconceptions
from experiments.tiny.make import CHAIN_LENGTH, Recipe, beliefs, make_model
from trainer import checks, config
from trainer.display import Display
from trainer.files import read_jsonl
from trainer.seeds import generator
from trainer.session import started

HERE = Path(__file__).parent
RESULTS = HERE / "results"
GRID = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BASES = (0, 1)
SELECTION_SEEDS = (101, 102)
FINAL_SEEDS = (1, 2, 3, 4, 5)
DISTILL = "actor_rollout_ref.actor.self_distillation"
TWO = f"{DISTILL}.include_another_solution=True"
FAILED = (f"{DISTILL}.include_failure_solution=True", f"{DISTILL}.failure_solution_condition=always")


@dataclass(frozen=True)
class Task:
    """How long and how wide a task is trained, and how long its sequences are."""

    name: str
    prompts: int
    steps: int
    response: int
    reprompt: int
    validate_every: int


TASKS = {
    "chains": Task("chains", prompts=4, steps=40, response=48, reprompt=256, validate_every=10),
    "misconceptions": Task("misconceptions", prompts=16, steps=100, response=12, reprompt=128, validate_every=20),
}
DEFAULT = "MOPD contrastive"
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    DEFAULT: ("sdpo", (TWO, *FAILED)),
    "MOPD contrastive, own failures": ("sdpo", (TWO, *FAILED, f"{DISTILL}.failure_order=per_member")),
    "MOPD positive": ("sdpo", (TWO,)),
    "SDPO": ("sdpo", ()),
    "GRPO": ("baseline_grpo", ()),
}


@dataclass(frozen=True)
class Run:
    """One training run. `part` is selection or final: which prompts it trains and is evaluated on."""

    task: str
    method: str
    lr: float
    base: int
    seed: int
    part: str


def planned(task: str, done: dict[Run, dict]) -> Iterator[Run]:
    """Yield the runs of a task that can be started and are not done: the grid first, then the finals with what it chose."""
    grid = [Run(task, m, lr, b, s, "selection") for m in METHODS for lr in GRID for b in BASES for s in SELECTION_SEEDS]
    yield from (run for run in grid if run not in done)
    if all(run in done for run in grid):
        chosen = choose(task, done)
        finals = [Run(task, m, chosen[m], b, s, "final") for m in METHODS for b in BASES for s in FINAL_SEEDS]
        yield from (run for run in finals if run not in done)


def choose(task: str, done: dict[Run, dict]) -> dict[str, float]:
    """Return the learning rate of each method: the best mean final mean@8 on the selection set."""
    return {method: max(GRID, key=lambda lr: _selected(task, method, lr, done)) for method in METHODS}


def _selected(task: str, method: str, lr: float, done: dict[Run, dict]) -> float:
    return float(np.mean([done[Run(task, method, lr, b, s, "selection")]["final"]["mean"] for b in BASES for s in SELECTION_SEEDS]))


def write_data(run: Run, folder: Path) -> None:
    """Write the prompts of a run: chains of disjoint draws, questions of disjoint halves."""
    if run.task == "chains":
        rng = generator(run.base, "compare", run.part)
        problems = list(dict.fromkeys(chains.draw_problem(rng, CHAIN_LENGTH) for _ in range(1200)))[:1152]
        problems = [(problem, chains.answer(chains.solve(problem))) for problem in problems]
        splits = {"train": problems[:1024], "test": problems[1024:]}
    else:
        truth = beliefs(run.base).truth
        half = misconceptions.QUESTIONS[0 if run.part == "selection" else 1 :: 2]
        splits = {split: [(question, truth[question]) for question in half] for split in ("train", "test")}
    for split, pairs in splits.items():
        records = [{"kind": "tiny", "dataset": f"tiny_{run.task}", "prompt": p, "answer": a, "idx": i} for i, (p, a) in enumerate(pairs)]
        write_parquet((to_row(record, split, run.task) for record in records), folder / f"{split}.parquet")


def execute(run: Run) -> dict:
    """Train one run in this process and return its validations and last metrics."""
    torch.set_num_threads(1)
    task, (name, peers) = TASKS[run.task], METHODS[run.method]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_data(run, folder)
        settings = config.load(
            name,
            [
                f"actor_rollout_ref.model.path=models/{Recipe(run.task, run.base).name}",
                f"data.train_files=[{folder}]",
                f"data.val_files=[{folder}]",
                f"data.seed={run.seed}",
                f"data.train_batch_size={task.prompts}",
                f"actor_rollout_ref.actor.ppo_mini_batch_size={task.prompts}",
                "data.max_prompt_length=32",
                f"data.max_response_length={task.response}",
                f"{DISTILL}.max_reprompt_len={task.reprompt}",
                f"{DISTILL}.distillation_topk=16",
                f"actor_rollout_ref.actor.optim.lr={run.lr}",
                "actor_rollout_ref.actor.optim.betas=[0.9,0.95]",
                "actor_rollout_ref.actor.optim.lr_scheduler_type=linear",
                "actor_rollout_ref.actor.optim.min_lr_ratio=0.1",
                "actor_rollout_ref.rollout.val_kwargs.temperature=1.0",
                "actor_rollout_ref.rollout.val_kwargs.top_p=1.0",
                f"trainer.total_training_steps={task.steps}",
                f"trainer.test_freq={task.validate_every}",
                "trainer.save_freq=0",
                "trainer.device=cpu",
                "reward.num_workers=1",
                *(f"trainer.{kind}_dir={folder / kind}" for kind in ("default_local", "rollout_data", "validation_data", "log")),
                *peers,
            ],
        )
        with started(checks.prepare(settings), Display(enabled=False), in_process=True) as loop:
            loop.display.warn = lambda text: None
            loop.run()
        rows = read_jsonl(folder / "log" / "metrics.jsonl")
        key = f"val-core/tiny_{run.task}/acc"
        curve = [
            {"step": row["step"], "mean": row[f"{key}/mean@8"], "pass": row[f"{key}/pass@8"]} for row in rows if f"{key}/mean@8" in row
        ]
        entropies = [row["actor/entropy"] for row in rows if "actor/entropy" in row]
        out = {
            **asdict(run),
            "curve": curve,
            "final": curve[-1],
            "entropy": float(np.mean(entropies[-5:])),
            "seconds": sum(r.get("timing_s/step", 0) for r in rows),
        }
        if run.task == "misconceptions":
            out["kinds"] = {step: _by_kind(run.base, folder / "validation_data" / f"{step}.jsonl") for step in (0, task.steps)}
        return out


def _by_kind(base: int, dump: Path) -> dict[str, float]:
    kind, scores = beliefs(base).kind, {}
    for row in read_jsonl(dump):
        scores.setdefault(kind[row["input"].split("\n")[1]], []).append(row["score"])
    return {name: float(np.mean(values)) for name, values in sorted(scores.items())}


def run_all(task: str, workers: int) -> dict[Run, dict]:
    """Run what is missing and return all results. The file is appended to, a run a line."""
    RESULTS.mkdir(exist_ok=True)
    file, done = _file(task), read_results(task)
    while pending := list(planned(task, done)):
        # not multiprocessing.Pool: its daemonic workers may not start the verifiers' processes
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool, file.open("a") as out:
            for number, future in enumerate(as_completed([pool.submit(execute, run) for run in pending]), 1):
                result = future.result()
                out.write(json.dumps(result) + "\n")
                out.flush()
                done[_run_of(result)] = result
                print(
                    f"{task} {number}/{len(pending)}  {result['method']}  lr {result['lr']:g}  base {result['base']}  "
                    f"{result['part']}  {result['final']['mean']:.3f}",
                    flush=True,
                )
    return done


def read_results(task: str) -> dict[Run, dict]:
    """Return the finished runs of a task."""
    return {_run_of(row): row for row in (read_jsonl(_file(task)) if _file(task).is_file() else [])}


def _file(task: str) -> Path:
    return RESULTS / f"{task}.jsonl"


def _run_of(row: dict) -> Run:
    return Run(**{name: row[name] for name in Run.__dataclass_fields__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="which to run; the report is of all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report-only", action="store_true", help="write the report from the results there are")
    options = parser.parse_args()
    if not options.report_only:
        for task in options.tasks:
            for base in BASES:
                make_model(Recipe(task, base), Path("models"))
            run_all(task, options.workers)
    from experiments.tiny.report import write_report

    write_report(HERE / "README.md", [task for task in TASKS if read_results(task)])


if __name__ == "__main__":
    main()
