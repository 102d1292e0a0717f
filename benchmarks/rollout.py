"""Tokens per second of the hf engine and of transformers' own `generate`, side by side in one run.

    python -m benchmarks.rollout [--model DIR | --size 0.5m] [--sequences 1 8 64 256] [--tokens 64] [--repeats 7]

Both sample from the same model for the same prompts, 8 samples each, at temperature 1 until the end-of-turn token or
the budget, and both give the log-probs of what they sampled, which training needs. Tokens after the end of a response
do not count. Runs alternate; the ratio is the median of the pairs. Writes benchmarks/results/rollout.json.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.tools import SHAPES, random_model, write_results
from experiments.tiny.chains import draw_problem
from trainer.engines.base import Sampling
from trainer.engines.hf import HFEngine
from trainer.machine import cores
from trainer.models import load_chat

SAMPLES = 8


def run_engine(engine: HFEngine, prompts: list[np.ndarray], samples: int, tokens: int) -> int:
    """Return how many tokens the engine sampled."""
    seeds = [[p * samples + s for s in range(samples)] for p in range(len(prompts))]
    return sum(len(response.token_ids) for done in engine.generate(prompts, seeds, Sampling(tokens)) for response in done)


@torch.inference_mode()
def run_generate(lm, prompts: list[np.ndarray], samples: int, tokens: int, stop: int, pad: int) -> int:
    """Return how many tokens `generate` sampled up to the end of each response; log-probs as a trainer would get them."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    out = lm.generate(
        ids.repeat_interleave(samples, 0),
        attention_mask=mask.repeat_interleave(samples, 0),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=tokens,
        eos_token_id=stop,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    new = out.sequences[:, width:]
    torch.stack(out.logits, 1).log_softmax(-1).gather(-1, new[..., None])
    ends = (new == stop).long()
    return int(torch.where(ends.any(1), ends.argmax(1) + 1, new.shape[1]).sum())


def measure(model: Path, sequences: list[int], tokens: int, repeats: int) -> list[dict]:
    """Return a row per number of sequences."""
    chat = load_chat(str(model), {})
    stop, pad = chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id
    engine = HFEngine(str(model), stop_ids=[stop])
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    rng, rows = np.random.default_rng(0), []
    for count in sequences:
        samples = min(SAMPLES, count)
        prompts = [chat.prompt_ids([{"role": "user", "content": draw_problem(rng, 5)}]) for _ in range(count // samples)]
        pairs = []
        for repeat in range(repeats + 1):
            rates = []
            for run in (
                partial(run_engine, engine, prompts, samples, tokens),
                partial(run_generate, lm, prompts, samples, tokens, stop, pad),
            ):
                start = time.perf_counter()
                rates.append(run() / (time.perf_counter() - start))
            if repeat:  # the first pair warms up
                pairs.append(rates)
        ours, theirs = np.median(pairs, 0)
        ratio = float(np.median([a / b for a, b in pairs]))
        rows.append({"sequences": count, "hf": float(ours), "generate": float(theirs), "ratio": ratio})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of --size")
    parser.add_argument("--size", choices=list(SHAPES), default="0.5m")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model", options.size)
        rows = measure(model, options.sequences, options.tokens, options.repeats)
    name = options.model.name if options.model else f"random {options.size}"
    table = Table("sequences", "hf engine, tokens/s", "generate, tokens/s", "ratio", title=f"{name}, up to {options.tokens} tokens")
    for row in rows:
        table.add_row(str(row["sequences"]), f"{row['hf']:,.0f}", f"{row['generate']:,.0f}", f"{row['ratio']:.2f}")
    Console().print(table)
    print(
        write_results(
            "rollout", {"settings": {"model": name, "tokens": options.tokens, "repeats": options.repeats}, "rows": rows}, options.out
        )
    )


if __name__ == "__main__":
    main()
