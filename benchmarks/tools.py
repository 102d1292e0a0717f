"""What the benchmarks share: random models of a named size, the machine in words, results as JSON."""

import json
import platform
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, logging

from experiments.tiny.tokenizer import make_tokenizer
from trainer import config
from trainer.machine import cores
from trainer.models import load_chat

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # Qwen3 shapes by size; parameters without the (tiny) vocabulary
    "0.5m": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256},
    "3.2m": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 768},
    "0.1b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2560},
}


def random_model(folder: Path, size: str) -> Path:
    """Write a Qwen3 of a named size with random weights and the word-level tokenizer of the tiny tasks."""
    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    make_tokenizer(folder, [*"0123456789", "+-*=", "Answer:"], config.load("sdpo").actor_rollout_ref.actor.self_distillation)
    tokenizer = load_chat(str(folder), {}).tokenizer
    shape = SHAPES[size]
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(tokenizer),
            head_dim=shape["hidden_size"] // shape["num_attention_heads"],
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    )
    lm.save_pretrained(folder)
    return folder


def parameters(folder: Path) -> int:
    """Return the number of parameters of a model folder."""
    return AutoModelForCausalLM.from_pretrained(folder).num_parameters()


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_results(name: str, results: Any, out: Path | None = None) -> Path:
    """Write results with the machine they were measured on; return the file."""
    file = out or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    return file
