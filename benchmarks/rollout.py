"""Tokens per second of the engines and of transformers' own `generate`, side by side in one run.

    python -m benchmarks.rollout [--model DIR | --size 0.5m] [--engines hf vllm] [--sequences 1 8 64 256] [--tokens 64] [--repeats 7]

All sample from the same model for the same prompts, 8 samples each, at temperature 1 until the end-of-turn token or
the budget, and all give the log-probs of what they sampled, which training needs. Tokens after the end of a response
do not count. Runs alternate; a ratio is the median of the rounds. Writes benchmarks/results/rollout_SIZE.json and .png.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.tools import SHAPES, random_model, write_results
from experiments.tiny.chains import draw_problem
from trainer.engines import ENGINES, engine_class
from trainer.engines.base import Engine, Sampling, Settings
from trainer.machine import cores
from trainer.models import load_chat

SAMPLES = 8


def run_engine(engine: Engine, prompts: list[np.ndarray], samples: int, tokens: int) -> int:
    """Return how many tokens the engine sampled."""
    seeds = [[p * samples + s for s in range(samples)] for p in range(len(prompts))]
    return sum(len(response.token_ids) for done in engine.generate(prompts, seeds, Sampling(tokens)) for response in done)


@torch.inference_mode()
def run_generate(lm, prompts: list[np.ndarray], samples: int, tokens: int, stop: int, pad: int) -> int:
    """Return how many tokens `generate` sampled up to the end of each response; log-probs as a trainer would get them."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, device=lm.device)
    mask = torch.zeros(len(prompts), width, dtype=torch.long, device=lm.device)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64)).to(ids.device)
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


def measure(model: Path, engines: list[str], sequences: list[int], tokens: int, repeats: int, device: str = "cpu") -> list[dict]:
    """Return a row per number of sequences: tokens per second by engine, and its ratio to `generate`."""
    chat = load_chat(str(model), {})
    stop, pad = chat.tokenizer.eos_token_id, chat.tokenizer.pad_token_id
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    settings = Settings(max_num_seqs=max(sequences), max_model_len=tokens + 64)
    running = {name: engine_class(name)(str(model), stop_ids=[stop], device=device, dtype=dtype, settings=settings) for name in engines}
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
    rng, rows = np.random.default_rng(0), []
    for count in sequences:
        samples = min(SAMPLES, count)
        prompts = [chat.prompt_ids([{"role": "user", "content": draw_problem(rng, 5)}]) for _ in range(count // samples)]
        ways = {name: partial(run_engine, engine, prompts, samples, tokens) for name, engine in running.items()}
        ways["generate"] = partial(run_generate, lm, prompts, samples, tokens, stop, pad)
        rounds = []
        for repeat in range(repeats + 1):
            rates = {}
            for name, run in ways.items():
                start = time.perf_counter()
                rates[name] = run() / (time.perf_counter() - start)
            if repeat:  # the first round warms up
                rounds.append(rates)
        row = {"sequences": count, **{name: float(np.median([rates[name] for rates in rounds])) for name in ways}}
        row["ratio"] = {name: float(np.median([rates[name] / rates["generate"] for rates in rounds])) for name in engines}
        rows.append(row)
    for engine in running.values():
        engine.close()
    return rows


def plot(rows: list[dict], title: str, file: Path) -> None:
    """Draw tokens per second over the number of sequences."""
    names = [name for name in rows[0] if name not in ("sequences", "ratio")]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, marker in zip(names, "osD^", strict=False):
        axes.plot([row["sequences"] for row in rows], [row[name] for row in rows], marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="sequences", ylabel="tokens per second", title=title)
    axes.set_xticks([row["sequences"] for row in rows], [str(row["sequences"]) for row in rows])
    axes.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights of --size")
    parser.add_argument("--size", choices=list(SHAPES), default="0.5m")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(cores())
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model", options.size)
        rows = measure(model, options.engines, options.sequences, options.tokens, options.repeats, options.device)
    name = options.model.name if options.model else options.size
    title = f"{name if options.model else f'random {name}'}, up to {options.tokens} tokens, {options.device}"
    table = Table("sequences", *(f"{engine}, tokens/s" for engine in (*options.engines, "generate")), "by generate", title=title)
    for row in rows:
        rates = (f"{row[engine]:,.0f}" for engine in (*options.engines, "generate"))
        table.add_row(str(row["sequences"]), *rates, ", ".join(f"{engine} {ratio:.2f}" for engine, ratio in row["ratio"].items()))
    Console().print(table)
    settings = {"model": title, "tokens": options.tokens, "repeats": options.repeats}
    file = write_results(f"rollout_{name}", {"settings": settings, "rows": rows}, options.out)
    plot(rows, title, file.with_suffix(".png"))
    print(f"{file}, {file.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
