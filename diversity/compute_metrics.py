"""How diverse the responses of one or more runs are, and what that has to do with pass@k (docs/diversity.md, behaviour 9).

    python diversity/compute_metrics.py --run SDPO=rollouts/sdpo/candidate_responses.jsonl --run MOPD=validation/mopd/40.jsonl \\
        --task code --ks 1 2 4 8 --intersect-prompts --output-dir analysis_outputs/diversity

A run is a candidate_responses.jsonl, a rollout dump, or a folder of either. Writes summary.json, summary.csv,
paired.csv, per_prompt.jsonl and case_studies.jsonl, and prints what they say.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from analysis import command
from data.writing import put, shown, whole
from diversity import measures
from diversity.runs import Group, Run, read_run, select
from diversity.summary import FEW, Row, case_studies, common_k, paired_differences, summarise
from trainer.errors import UserError
from trainer.rewards.code import extract
from trainer.validation import RESAMPLES, pass_at_k

TASKS = ("generic", "code")
PRINTED = (
    "self_bleu4",
    "pairwise_text_distance",
    "distinct2",
    "unique_response_ratio",
    "unique_code_ratio",
    "ast_node_jaccard_distance",
    "success_self_bleu4",
    "success_pairwise_text_distance",
    "success_ast_node_jaccard_distance",
    "without_program_ratio",
)


def diversity(texts: Sequence[str], task: str) -> dict[str, float | None]:
    """Return the measures of a set of responses.

    task: for `code` all but `unique_response_ratio` are about the programs that the verifier would run, and responses
    without one are left out.
    """
    programs = [program for program in map(extract, texts) if program is not None] if task == "code" else None
    viewed = texts if programs is None else programs
    tokens = [measures.tokenize(text) for text in viewed]
    found = {
        "self_bleu4": measures.self_bleu(tokens),
        "pairwise_text_distance": measures.pairwise_distance(tokens),
        "distinct1": measures.distinct(tokens, 1),
        "distinct2": measures.distinct(tokens, 2),
        "unique_response_ratio": measures.unique_ratio([measures.normalised_text(text) for text in texts]),
    }
    if programs is not None:
        trees = [tree for tree in map(measures.node_counts, programs) if tree is not None]
        found["unique_code_ratio"] = measures.unique_ratio([measures.normalised_code(program) for program in programs])
        found["ast_node_jaccard_distance"] = measures.ast_distance(trees)
        found["without_program_ratio"] = (len(texts) - len(programs)) / len(texts) if texts else None
        found["unparsable_program_ratio"] = (len(programs) - len(trees)) / len(programs) if programs else None
    return found


def measure(method: str, group: Group, task: str, ks: Sequence[int]) -> Row:
    """Return the row of one prompt of one run; what is undefined is None: pass@k with fewer than k responses, for one."""
    responses = group.responses
    n, successes = len(responses), [response for response in responses if response.success]
    of_successes = diversity([response.text for response in successes], task)
    return {
        "method": method,
        "prompt_id": group.prompt_id,
        "difficulty_bucket": group.bucket,
        "step": group.step,
        "n_rollouts": n,
        "success_count": len(successes),
        "success_rate": len(successes) / n,
        "mean_reward": sum(response.reward for response in responses) / n,
        **diversity([response.text for response in responses], task),
        **{f"success_{name}": value for name, value in of_successes.items()},
        **{f"pass@{k}": float(pass_at_k(len(successes), n, k)) if k <= n else None for k in ks},
    }


def compute(runs: Sequence[Run], task: str, ks: Sequence[int], top: int) -> dict[str, Any]:
    """Return per_prompt, summary, paired, case_studies and k, the k of the correlations and case studies."""
    groups = [(run.name, group) for run in runs for group in run.groups.values()]
    rows = [measure(name, group, task, ks) for name, group in shown(groups, "measuring", len(groups))]
    by_run = {run.name: [row for row in rows if row["method"] == run.name] for run in runs}
    k = common_k(rows, ks)
    prompts = {group.prompt_id: group.prompt for _, group in groups}
    return {
        "per_prompt": rows,
        "summary": [summarise(rows, k) for rows in by_run.values()],
        "paired": paired_differences(by_run),
        "case_studies": [{**case, "prompt": prompts[case["prompt_id"]]} for case in case_studies(by_run, k, top)],
        "k": k,
    }


def write(folder: Path, config: Mapping[str, Any], left_out: Mapping[str, Mapping[str, int]], results: Mapping[str, Any]) -> None:
    """Write all output files, all of them or none."""
    names = ("summary.json", "summary.csv", "paired.csv", "per_prompt.jsonl", "case_studies.jsonl")
    with whole(*(folder / name for name in names)) as (summary, table, paired, per_prompt, cases):
        content = {"config": config, "summary": results["summary"], "paired": results["paired"], "left_out": left_out}
        summary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        _write_csv(table, results["summary"])
        _write_csv(paired, results["paired"])
        for file, rows in ((per_prompt, results["per_prompt"]), (cases, results["case_studies"])):
            with file.open("w", encoding="utf-8") as opened:
                for row in rows:
                    put(opened, row)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    flat = [dict(_columns(row)) for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, flat[0] if flat else ())
        writer.writeheader()
        writer.writerows(flat)


def _columns(row: Row) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a row: of an interval two, an empty cell for what is undefined."""
    for name, value in row.items():
        if name == "ci" or name.endswith("_ci"):
            yield from zip((f"{name}_low", f"{name}_high"), value or ("", ""), strict=True)
        else:
            yield name, "" if value is None else value


def show(console: Console, runs: Sequence[Run], results: Mapping[str, Any], ks: Sequence[int]) -> None:
    """Print means with intervals, paired differences with the first run, correlations, and what was left out."""
    summary = results["summary"]
    names = [name for name in (*(f"pass@{k}" for k in ks), *PRINTED) if f"{name}_mean" in summary[0]]
    table = Table("measure", *(_plain(f"{row['method']} ({row['prompt_count']})") for row in summary), title="means over prompts")
    for name in names:
        cells = [_cell(row[f"{name}_mean"], row[f"{name}_ci"], row[f"{name}_count"], row["prompt_count"]) for row in summary]
        table.add_row(name, *cells)
    for name in (name for name in summary[0] if name.startswith("corr_") and f"{name}_ci" in summary[0]):
        table.add_row(name, *(_cell(row[name], row[f"{name}_ci"], row[f"{name}_count"], row["prompt_count"]) for row in summary))
    table.caption = "with 95 % bootstrap intervals over prompts; (n): over the n prompts for which it is defined"
    console.print(table)
    first = runs[0].name
    pairs = {(row["method"], row["metric"]): row for row in results["paired"] if row["minus"] == first}
    if pairs:
        table = Table("measure", *(_plain(f"{run.name} - {first}") for run in runs[1:]), title="differences on common prompts")
        for name in names:
            found = [pairs[run.name, name] for run in runs[1:]]
            table.add_row(name, *(_cell(row["mean_difference"], row["ci"], row["count"], None) for row in found))
        table.caption = "all pairs and measures: paired.csv"
        console.print(table)
    for run in runs:
        for reason, count in sorted((+run.left_out).items()):
            console.print(f"{run.name}: left out {count} {reason}", markup=False, highlight=False)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # names are no markup


def _cell(value: float | None, ci: Sequence[float] | None, count: int, of: int | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" \\[{ci[0]:.3f}, {ci[1]:.3f}]" if ci else "") + (f" ({count})" if count != of else "")


def parse_run(text: str) -> tuple[str, Path]:
    """Return name and path of NAME=PATH. Raises UserError for anything else."""
    name, found, path = text.partition("=")
    if not (name.strip() and found and path):
        raise UserError(f"--run {text}: must be NAME=PATH, the name as it shall stand in tables and plots.")
    return name.strip(), Path(path)


def work(options: argparse.Namespace) -> None:
    """Do what the command line asks. Raises UserError for options that cannot be and files that cannot be read."""
    paths = [parse_run(text) for text in options.run]
    names = [name for name, _ in paths]
    ks = sorted(set(options.ks))
    least, most = options.min_responses_per_prompt, options.max_responses_per_prompt
    if len(set(names)) < len(names):
        raise UserError(f"--run: {max(names, key=names.count)} names two runs; each needs a name of its own.")
    if ks[0] < 1 or least < 1 or options.case_study_top_n < 0 or (options.max_prompts is not None and options.max_prompts < 1):
        raise UserError("--ks, --min-responses-per-prompt and --max-prompts must be 1 or more, --case-study-top-n 0 or more.")
    if most is not None and most < least:
        raise UserError(f"--max-responses-per-prompt {most} is below --min-responses-per-prompt {least}: no prompt would be left.")
    runs = select(
        [read_run(name, path, mix_steps=options.mix_steps) for name, path in paths],
        least=least,
        most=most,
        intersect=options.intersect_prompts,
        max_prompts=options.max_prompts,
    )
    results = compute(runs, options.task, ks, options.case_study_top_n)
    config = {
        "runs": {name: str(path) for name, path in paths},
        "task": options.task,
        "ks": ks,
        "max_prompts": options.max_prompts,
        "max_responses_per_prompt": most,
        "min_responses_per_prompt": least,
        "intersect_prompts": options.intersect_prompts,
        "mix_steps": options.mix_steps,
        "case_study_top_n": options.case_study_top_n,
        "k": results["k"],
        "bootstrap_resamples": RESAMPLES,
        "self_bleu4": measures.bleu_signature(),
    }
    left_out = {run.name: dict(+run.left_out) for run in runs}
    write(options.output_dir, config, left_out, results)
    console = Console(width=None if sys.stdout.isatty() else 160)
    show(console, runs, results, ks)
    if len({tuple(run.groups) for run in runs}) > 1:
        console.print("The runs have different prompts: compare their means with care, or give --intersect-prompts.", highlight=False)
    if options.task == "code" and all(row["without_program_ratio"] == 1 for row in results["per_prompt"]):
        console.print("No response holds a program: nothing of --task code is defined. --task generic measures the texts.", highlight=False)
    sizes = {len(group.responses) for run in runs for group in run.groups.values()}
    if len(sizes) > 1:
        console.print(
            f"Prompts have {min(sizes)} to {max(sizes)} responses: self-BLEU rises with their number, distinct-n and unique ratios fall; "
            "distances do not depend on it. --min- and --max-responses-per-prompt make them equal.",
            highlight=False,
        )
    if (fewest := min(len(run.groups) for run in runs)) < FEW:
        console.print(f"Only {fewest} prompts: a bootstrap over so few makes intervals that are too narrow.", highlight=False)
    console.print(f"written to {options.output_dir}", markup=False, highlight=False)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--run", action="append", required=True, metavar="NAME=PATH", help="a run; repeat it for each")
    parser.add_argument("--task", choices=TASKS, default="generic", help="code: measure the programs in the responses")
    parser.add_argument("--ks", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K", help="the k of pass@k")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--max-prompts", type=int, help="the first so many prompts by id, after the intersection")
    parser.add_argument("--max-responses-per-prompt", type=int, help="the first so many responses by id")
    parser.add_argument("--min-responses-per-prompt", type=int, default=2, help="prompts with fewer are left out")
    parser.add_argument("--intersect-prompts", action="store_true", help="only prompts that all runs have")
    parser.add_argument("--case-study-top-n", type=int, default=20)
    parser.add_argument("--mix-steps", action="store_true", help="one group of all steps a prompt was sampled at; default: its last step")
    return command.main(parser, work, arguments)


if __name__ == "__main__":
    sys.exit(main())
