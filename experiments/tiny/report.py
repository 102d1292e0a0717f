"""README.md of the comparison, from results/<task>.jsonl alone: every number and every judgement in it is computed here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from scipy import stats

from experiments.tiny.compare import BASES, DEFAULT, FINAL_SEEDS, GRID, METHODS, RESULTS, SELECTION_SEEDS, TASKS, Run, choose, read_results
from trainer.files import write_text

matplotlib.use("Agg")

COLLAPSE = 0.8  # a run that ends below this share of its best validation has collapsed
INTRODUCTION = f"""# MOPD, SDPO and GRPO at equal rollouts on two tiny tasks

Made by one command: 300 runs, about an hour on two cores. It goes on where it was interrupted, so in a fresh clone it only
writes this page from `results/*.jsonl`; without them it runs everything again:

    python -m experiments.tiny.compare

Every method trains the same two base models on the same prompts in the same order with the same number of rollouts; the
sampling seeds are common too. For each method the learning rate is the one of {", ".join(f"{lr:g}" for lr in GRID)} with the best
final mean@8 over {len(BASES)} bases x {len(SELECTION_SEEDS)} seeds on a *selection* set. The numbers below come from
{len(BASES)} bases x {len(FINAL_SEEDS)} other seeds on a *final* set that no choice has seen. ± is one standard error over these
{len(BASES) * len(FINAL_SEEDS)} runs. Differences are paired by base and seed, p is that of a paired t-test; the runs share
{len(BASES)} bases, so they say little about other bases. Validation samples 8 responses at temperature 1, top-p 1.

The base models are made to be wrong: their errors are built in by the warm-up (`experiments/tiny/chains.py`,
`experiments/tiny/misconceptions.py`), so these are tests of the algorithms and of this code, not evidence about language models.
The warm-up also teaches them to use peers (copy a success, avoid a failed answer; `CHAIN_MIX` and `QUESTION_MIX` in
`experiments/tiny/make.py`), with made-up truths, so that no real answer leaks. How well a language model uses a shown failure is
not tested here.

Loss: the student's 16 likeliest tokens and one bucket for the rest; the teacher moves 5 % toward the student a step (EMA 0.05).
*Collapsed*: ended below 0.8 of its best validation. Entropy in nats a token, mean of the last five steps.

| method | who is shown to the teacher of a rollout |
|---|---|
| MOPD contrastive | 2 successes + 1 failure; the failure by the group's common order (the default of this project) |
| MOPD contrastive, own failures | 2 successes + 1 failure drawn for each rollout (`failure_order=per_member`) |
| MOPD positive | 2 successes |
| SDPO | 1 success |
| GRPO | no teacher: group-relative advantages |
"""
ABOUT = {
    "chains": "k = 5 operations modulo 10, solved line by line; the base's annotator slips. Training prompts and the {test} test "
    "prompts are disjoint, and those of selection and final are other draws.",
    "misconceptions": "256 questions, four letters each; the base knows some, is unsure of some and holds a wrong letter on the "
    "rest, whose groups mostly fail as a whole. Trained and evaluated on the same questions (test-time training, no claim of "
    "generalisation): 128 for selection, the other 128 for the final numbers. What a teacher does after a beginning it would not have "
    "written decides here: the warm-up forces a first letter on a part of its examples and lets the model go on from it. A first base "
    "without that ended such rollouts unanswered as a teacher, its students unlearned the answer line, and 9 of 39 selection runs with "
    "failures in the prompt ended below 0.8 of their best (the other methods were not run on it).",
}


@dataclass(frozen=True)
class Paired:
    """A mean difference over pairs with its standard error, how often it is positive, and the p of a paired t-test."""

    mean: float
    error: float
    wins: int
    p: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> "Paired":
        """Compare two lists of the same length, pair by pair."""
        difference = np.asarray(first) - np.asarray(second)
        p = 1.0 if np.ptp(difference) == 0 else float(stats.ttest_rel(first, second).pvalue)
        return cls(float(difference.mean()), float(stats.sem(difference)), int((difference > 0).sum()), p)


class Results:
    """The finished runs of a task, by method."""

    def __init__(self, task: str) -> None:
        self.task, self.done = task, read_results(task)
        self.chosen = choose(task, self.done)

    def finals(self, method: str) -> list[dict]:
        """Return the final runs of a method, in the order of bases and seeds."""
        return [self.done[Run(self.task, method, self.chosen[method], b, s, "final")] for b in BASES for s in FINAL_SEEDS]

    def selected(self, method: str, lr: float) -> list[float]:
        """Return the final mean@8 of the selection runs of a method at a learning rate."""
        return [self.done[Run(self.task, method, lr, b, s, "selection")]["final"]["mean"] for b in BASES for s in SELECTION_SEEDS]


def collapsed(run: dict) -> bool:
    """Say whether a run ends below 0.8 of its best validation."""
    values = [point["mean"] for point in run["curve"]]
    return values[-1] < COLLAPSE * max(values)


def write_report(file: Path, tasks: Sequence[str]) -> None:
    """Write the page and, beside the results, one figure a task."""
    parts = [INTRODUCTION]
    for task in tasks:
        results = Results(task)
        parts.append("\n".join(_task(results)))
        _figure(results, RESULTS / f"{task}.svg")
    write_text(file, "\n".join(parts))
    print(f"wrote {file}")


def _task(results: Results) -> list[str]:
    task = TASKS[results.task]
    start = [run["curve"][0] for run in results.finals(DEFAULT)]
    return [
        f"## {results.task}\n",
        ABOUT[results.task].format(test=128) + "\n",
        f"{task.steps} steps of {task.prompts} prompts x 8 rollouts; top-16 + tail, EMA 0.05, linear decay to a tenth.",
        f"Before training: mean@8 {_mean([p['mean'] for p in start])}, pass@8 {_mean([p['pass'] for p in start])}.\n",
        f"![mean@8 by training step](results/{results.task}.svg)\n",
        *_table(
            ["method", "lr", "mean@8", "pass@8", "lift of mean@8", *(f"base {b}" for b in BASES), "entropy at the end", "collapsed"],
            [_final_row(results, method) for method in METHODS],
        ),
        f"Differences to *{DEFAULT}* (positive: {DEFAULT} is better):\n",
        *_table(
            ["method", "mean@8", "better in", "p", "pass@8", "better in", "p"],
            [_difference_row(results, method) for method in METHODS if method != DEFAULT],
        ),
        *(_statement(results, method) for method in METHODS if method != DEFAULT),
        "",
        *(_kinds(results) if results.task == "misconceptions" else []),
        "Selection: mean@8 by learning rate, the chosen one in bold.\n",
        *_table(["method", *(f"{lr:g}" for lr in GRID)], [_grid_row(results, method) for method in METHODS]),
        *_edges(results),
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {stats.sem(values):.3f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def _final_row(results: Results, method: str) -> list[str]:
    runs = results.finals(method)
    final = [run["final"]["mean"] for run in runs]
    return [
        method,
        f"{results.chosen[method]:g}",
        _mean(final),
        _mean([run["final"]["pass"] for run in runs]),
        f"{np.mean(final) - np.mean([run['curve'][0]['mean'] for run in runs]):+.3f}",
        *(f"{np.mean([run['final']['mean'] for run in runs if run['base'] == b]):.3f}" for b in BASES),
        f"{np.mean([run['entropy'] for run in runs]):.3f}",
        f"{sum(map(collapsed, runs))} of {len(runs)}",
    ]


def _difference(results: Results, method: str, what: str) -> Paired:
    ours, theirs = ([run["final"][what] for run in results.finals(name)] for name in (DEFAULT, method))
    return Paired.of(ours, theirs)


def _difference_row(results: Results, method: str) -> list[str]:
    row = [method]
    for what in ("mean", "pass"):
        d = _difference(results, method, what)
        row += [f"{d.mean:+.3f} ± {d.error:.3f}", f"{d.wins} of {len(results.finals(method))}", f"{d.p:.2g}"]
    return row


def _statement(results: Results, method: str) -> str:
    d = _difference(results, method, "mean")
    if d.p >= 0.05:
        return f"- {DEFAULT} and {method} cannot be told apart in mean@8."
    return f"- {DEFAULT} is {'better' if d.mean > 0 else 'worse'} than {method} in mean@8."


def _grid_row(results: Results, method: str) -> list[str]:
    cells = []
    for lr in GRID:
        text = f"{np.mean(results.selected(method, lr)):.3f}"
        cells.append(f"**{text}**" if lr == results.chosen[method] else text)
    return [method, *cells]


def _edges(results: Results) -> list[str]:
    at_edge = [method for method, lr in results.chosen.items() if lr in (GRID[0], GRID[-1])]
    if not at_edge:
        return ["No choice lies at an end of the grid.\n"]
    return [f"At an end of the grid, so perhaps not at its best: {', '.join(at_edge)}.\n"]


def _kinds(results: Results) -> list[str]:
    kinds = list(results.finals(DEFAULT)[0]["kinds"]["0"])
    rows = []
    for method in METHODS:
        runs = results.finals(method)
        ends: Callable[[dict], dict] = lambda run: run["kinds"][str(TASKS[results.task].steps)]  # noqa: E731
        rows.append([method, *(_mean([ends(run)[kind] for run in runs]) for kind in kinds)])
    before = ["before", *(_mean([run["kinds"]["0"][kind] for run in results.finals(DEFAULT)]) for kind in kinds)]
    return ["mean@8 by what the base believed of the question:\n", *_table(["method", *kinds], [before, *rows])]


def _figure(results: Results, file: Path) -> None:
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "mopd"  # the same picture from the same numbers
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for method in METHODS:
        runs = results.finals(method)
        steps = [point["step"] for point in runs[0]["curve"]]
        values = np.array([[point["mean"] for point in run["curve"]] for run in runs])
        error = stats.sem(values)
        (line,) = axes.plot(steps, values.mean(0), label=f"{method}, lr {results.chosen[method]:g}")
        axes.fill_between(steps, values.mean(0) - error, values.mean(0) + error, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xlabel="step", ylabel="mean@8", title=f"{results.task}: mean over {len(runs)} runs, ± 1 SE")
    axes.legend(fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
