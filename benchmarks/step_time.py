"""Where a MOPD step spends its time, in one process without Ray.

    python -m benchmarks.step_time [--size 3.2m] [--prompts 4] [--rollouts 8] [--tokens 64] [--steps 12] [--engine hf]

A random model, so that nothing is learned and every step costs the same; a coin for a verifier, so that groups are
mixed and the teacher reads 2 successes and 1 failure. Prints a table and writes benchmarks/results/step_time_ENGINE.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.tools import SHAPES, parameters, random_model, write_results
from data.preprocess import to_row, write_parquet
from experiments.tiny.chains import draw_problem
from trainer import checks, config
from trainer.display import Display
from trainer.engines import ENGINES
from trainer.machine import cores
from trainer.session import started

PHASES = ("rollout", "verify", "peers", "teacher", "student", "optimizer", "sync")
COIN = """import zlib

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(zlib.crc32(solution_str.encode()) % 2)
"""


def measure(size: str, prompts: int, rollouts: int, tokens: int, steps: int, device: str, engine: str = "hf") -> dict:
    """Run `steps` training steps after two warm-up steps and return medians by phase."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        model = random_model(out / "model", size)
        (out / "coin.py").write_text(COIN)
        rng = np.random.default_rng(0)
        records = [
            {"kind": "tiny", "dataset": "tiny_chains", "prompt": draw_problem(rng, 5), "answer": "0", "idx": i}
            for i in range(prompts * (steps + 2))
        ]
        write_parquet((to_row(record, "train", "benchmark") for record in records), out / "train.parquet")
        distill = "actor_rollout_ref.actor.self_distillation"
        settings = config.load(
            "sdpo",
            [
                f"actor_rollout_ref.model.path={model}",
                f"data.train_files=[{out}]",
                f"data.train_batch_size={prompts}",
                f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
                f"actor_rollout_ref.rollout.n={rollouts}",
                f"actor_rollout_ref.rollout.name={engine}",
                "data.max_prompt_length=32",
                f"data.max_response_length={tokens}",
                f"{distill}.include_another_solution=True",
                f"{distill}.include_failure_solution=True",
                f"{distill}.failure_solution_condition=always",
                f"{distill}.distillation_topk=16",
                f"custom_reward_function.path={out / 'coin.py'}",
                f"trainer.device={device}",
                *(f"trainer.{name}_dir={out / name}" for name in ("default_local", "rollout_data", "validation_data", "log")),
            ],
        )
        with started(checks.prepare(settings), Display(enabled=False), in_process=True) as loop:
            measured = [loop.train_step() for _ in range(steps + 2)][2:]
        count = parameters(model)

    def median(name: str) -> float:
        return float(np.median([metrics[name] for metrics in measured]))

    sampled = float(np.mean([metrics["response_length/mean"] for metrics in measured])) * prompts * rollouts
    phases = {name: median(f"timing_s/{name}") for name in PHASES}
    step = median("timing_s/step")
    return {
        "settings": {
            "size": size,
            "parameters": count,
            "prompts": prompts,
            "rollouts": rollouts,
            "max_tokens": tokens,
            "steps": steps,
            "device": device,
            "engine": engine,
        },
        "seconds": {**phases, "rest": step - sum(phases.values()), "step": step},
        "step_seconds_min_max": [float(f([m["timing_s/step"] for m in measured])) for f in (min, max)],
        "response_tokens_per_step": sampled,
        "teacher_prompt_tokens_mean": median("self_distillation/teacher_prompt_length/mean"),
        "tokens_per_second": {
            "sampled": sampled / phases["rollout"],
            "trained": sampled / (phases["teacher"] + phases["student"]),
            "step": sampled / step,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default="3.2m")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--engine", choices=list(ENGINES), default="hf")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    results = measure(options.size, options.prompts, options.rollouts, options.tokens, options.steps, options.device, options.engine)

    step = results["seconds"]["step"]
    table = Table(
        "phase",
        "seconds (median)",
        "share",
        title=f"a step of {options.prompts * options.rollouts} rollouts of up to {options.tokens} tokens, "
        f"{results['settings']['parameters'] / 1e6:.1f}M parameters",
    )
    for name, seconds in results["seconds"].items():
        table.add_row(name, f"{seconds:.4f}", f"{seconds / step:.0%}")
    Console().print(table)
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in results["tokens_per_second"].items())
    print(f"response tokens per second: {rates}\n{write_results(f'step_time_{options.engine}', results, options.out)}")


if __name__ == "__main__":
    main()
