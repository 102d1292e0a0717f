"""What a rank was predicted to need beside what it then took, on a random model of a named size.

    python -m benchmarks.memory [--size 0.1b] [--words 30000] [--device cuda] [key=value ...] [--help]

The actor alone, without Ray and engine: it is built and trains two steps on random rollouts of full length. On a CPU the
resident memory of this process counts, on CUDA what PyTorch's allocator gave out. Prints both for each stage, and writes
benchmarks/results/memory_SIZE_DEVICE.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.tools import PeakMemory, model_config, write_results
from trainer import config as config_module
from trainer import memory
from trainer.batching import make_plan
from trainer.config.schema import Config
from trainer.types import Batch, Sample
from trainer.workers.actor import Actor
from trainer.workers.base import shares

MAKE_MODEL = """
import sys, torch
from transformers import AutoModelForCausalLM
from benchmarks.tools import model_config
torch.manual_seed(0)
AutoModelForCausalLM.from_config(model_config(sys.argv[2], vocab_size=int(sys.argv[3])), dtype=torch.float32).save_pretrained(sys.argv[1])
"""
STAGES = {  # what is measured -> the phases in which that happens
    "start": ("start",),
    "update": ("teacher", "head", "backward", "optimizer"),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="3.2m")
    parser.add_argument("--words", type=int, help="vocabulary; unless given that of the size, 30,000 where it has none")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--context", type=int, default=256, help="tokens of a teacher prompt")
    parser.add_argument("--prompts", type=int, default=2, help="prompts of a step, 8 rollouts each")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    options.words = options.words or (model_config(options.size).vocab_size if options.size.startswith("qwen3-") else 30_000)
    with tempfile.TemporaryDirectory() as folder:
        # in a process of its own: what is left of it would count as the actor's
        subprocess.run([sys.executable, "-c", MAKE_MODEL, folder, options.size, str(options.words)], check=True, stderr=subprocess.DEVNULL)
        results = measure(folder, options)
    table = Table("", "predicted, GiB", "measured", "of it beyond the process", title=f"{options.size} on {options.device}")
    for stage, row in results["stages"].items():
        off, grown = row["predicted"] / row["measured"] - 1, row["predicted_growth"] / row["growth"] - 1
        table.add_row(stage, f"{row['predicted']:.2f}", f"{row['measured']:.2f} ({off:+.0%})", f"{row['growth']:.2f} ({grown:+.0%})")
    Console().print(table)
    Console().print(f"written to {write_results(f'memory_{options.size}_{options.device}', results, options.out)}")
    return 0


def measure(folder: str, options: argparse.Namespace) -> dict:
    """Build and train an actor; return the predicted and the measured peak of each stage, in GiB."""
    config = config_module.load(
        "sdpo",
        [
            f"actor_rollout_ref.model.path={folder}",
            f"trainer.device={options.device}",
            f"data.max_prompt_length={options.prompt}",
            f"data.max_response_length={options.response}",
            f"data.train_batch_size={options.prompts}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={options.prompts}",
            f"actor_rollout_ref.actor.self_distillation.max_reprompt_len={options.context}",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=auto",
            *options.overrides,
        ],
    )
    process = memory.process_bytes()
    config, plan = memory.Planner(config, device=options.device, process=process).resolve(config)
    own = process if options.device == "cpu" else 0  # on a GPU the allocator's count is compared with the plan less all else
    foreign = () if options.device == "cpu" else ("process", "engine")
    predicted = {phase.name: sum(size for part, size in phase.parts.items() if part not in foreign) for phase in plan.phases}

    meter, measured = PeakMemory(options.device), {}
    meter.reset()
    actor = Actor(config, device=options.device)
    measured["start"] = meter.peak()
    batch = _batch(config, options.words)
    settings = config.actor_rollout_ref.actor
    (share,) = shares(batch, make_plan(batch, options.prompts, settings, world_size=1, max_response_length=options.response))
    meter.reset()
    for _ in range(options.steps):
        actor.update(share, 1e-5)
    measured["update"] = meter.peak()

    stages = {}
    for stage, phases in STAGES.items():
        expected = max((predicted[phase] for phase in phases if phase in predicted), default=0)
        if expected:
            grown = {"predicted_growth": (expected - own) / memory.GIB, "growth": (measured[stage] - own) / memory.GIB}
            stages[stage] = {"predicted": expected / memory.GIB, "measured": measured[stage] / memory.GIB, **grown}
    shape = {name: getattr(options, name) for name in ("size", "words", "device", "prompt", "response", "context", "prompts")}
    phases = {phase.name: dict(phase.parts) for phase in plan.phases}
    return {**shape, "overrides": options.overrides, "budget": plan.tokens, "chunk": plan.chunk, "stages": stages, "phases": phases}


def _batch(config: Config, words: int) -> Batch:
    """Return groups of random rollouts of full length; in each, one context for all but one member."""
    rng, n, data = np.random.default_rng(0), config.actor_rollout_ref.rollout.n, config.data
    longest = config.actor_rollout_ref.actor.self_distillation.max_reprompt_len

    def draw(tokens: int) -> np.ndarray:
        return rng.integers(0, words, tokens).astype(np.int32)

    samples = []
    for group in range(data.train_batch_size):
        prompt, contexts = draw(data.max_prompt_length), [draw(longest), draw(longest)]
        for i in range(n):
            logp = np.full(data.max_response_length, -np.log(words), np.float32)
            context = contexts[0 if i else 1]
            samples.append(Sample(f"u{group}", group, i, prompt, draw(data.max_response_length), logp, context_ids=context))
    return Batch(samples)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
