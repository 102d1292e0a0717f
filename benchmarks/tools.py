"""What the benchmarks share: random models of a named size, the machine in words, peak memory, results as JSON.

Imports torch and transformers alone: `distill_step` and `divergence` run where nothing else of the trainer's needs is installed.
"""

import ctypes
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, logging

from trainer.machine import cores

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # Qwen3 shapes by size
    # ours, named by their parameters without a vocabulary
    "0.5m": {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256},
    "3.2m": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 768},
    "0.1b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4, "intermediate_size": 2560},
    # the published ones
    "qwen3-0.6b": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072},
    "qwen3-1.7b": {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144},
    "qwen3-4b": {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
    "qwen3-8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "tie_word_embeddings": False,
    },
}
QWEN3 = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}  # what all published sizes have in common
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense, as the manufacturer states them (SXM)


def model_config(size: str, **changes: Any) -> Qwen3Config:
    """Return the configuration of a named size. Ours have no vocabulary of their own: they need `vocab_size`."""
    shape = SHAPES[size]
    common = QWEN3 if size.startswith("qwen3-") else {"head_dim": shape["hidden_size"] // shape["num_attention_heads"]}
    return Qwen3Config(**{"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, **common, **shape, **changes})


def random_model(folder: Path, size: str) -> Path:
    """Write a Qwen3 of a named size with random weights and the word-level tokenizer of the tiny tasks."""
    from experiments.tiny.tokenizer import make_tokenizer
    from trainer import config
    from trainer.models import load_chat

    logging.disable_progress_bar()
    folder.mkdir(parents=True)
    make_tokenizer(folder, [*"0123456789", "+-*=", "Answer:"], config.load("sdpo").actor_rollout_ref.actor.self_distillation)
    tokenizer = load_chat(str(folder), {}).tokenizer
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        model_config(size, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
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


class PeakMemory:
    """The most memory held on a device since `reset`, in bytes: what the allocator gave out on CUDA, resident memory on a CPU.

    On Linux the kernel's high-water mark is set back, so no child process and no sampling is needed; elsewhere `peak` is None.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        libc = ctypes.CDLL(None)
        if self.device.type == "cpu" and hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # what was freed before must not count

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) * 1024 if found else None


def write_results(name: str, results: Any, out: Path | None = None) -> Path:
    """Write results with the machine they were measured on; return the file."""
    file = out or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
    return file
