"""The actor's part of a checkpoint: sharded training state that loads on any number of ranks, and plain weights.

`training/` is a torch.distributed.checkpoint of student, teacher and optimizer in fp32; `huggingface/` is what
`from_pretrained` loads.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from transformers import AutoTokenizer

from trainer.models import ForestLM


@contextmanager
def writing(folder: str) -> Iterator[None]:
    """Turn what the libraries raise when a file cannot be written into OSError with the innermost reason."""
    try:
        yield
    except (CheckpointException, SafetensorError, OSError) as error:
        inner: BaseException = error
        if isinstance(error, CheckpointException):
            inner = next(iter(error.failures.values()))[0]
        raise OSError(f"{type(inner).__name__}: {inner} (writing {folder})") from error


def save(folder: Path, student: ForestLM, teacher: ForestLM | None, optimizer: Optimizer) -> None:
    """Write the training state. `teacher` is None unless it is an average of the student. Collective."""
    dcp.save(_state(student, teacher, optimizer), checkpoint_id=str(folder / "training"))


def load(folder: Path, student: ForestLM, teacher: ForestLM | None, optimizer: Optimizer) -> None:
    """Read the training state into the models and the optimizer. Collective."""
    held = _state(student, teacher, optimizer)
    dcp.load(held, checkpoint_id=str(folder / "training"))
    set_model_state_dict(student, held["student"])
    set_optimizer_state_dict(student, optimizer, held["optimizer"])
    if teacher is not None:
        set_model_state_dict(teacher, held["teacher"])


def load_teacher(folder: Path, teacher: ForestLM) -> None:
    """Read the averaged teacher alone into a float32 model. In this process alone; for the analysis."""
    held = {"teacher": get_model_state_dict(teacher)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # which is what is wanted
        dcp.load(held, checkpoint_id=str(folder / "training"), no_dist=True)
    set_model_state_dict(teacher, held["teacher"])


def _state(student: ForestLM, teacher: ForestLM | None, optimizer: Optimizer) -> dict:
    parts = {"student": get_model_state_dict(student), "optimizer": get_optimizer_state_dict(student, optimizer)}
    if teacher is not None:
        parts["teacher"] = get_model_state_dict(teacher)
    return parts


def save_huggingface(folder: Path, lm: nn.Module, weights: dict[str, Tensor], tokenizer_path: str) -> None:
    """Write config, tokenizer and weights (safetensors, in the dtype of `weights`) as `from_pretrained` reads them."""
    lm.config.dtype = next(iter(weights.values())).dtype
    lm.save_pretrained(folder, state_dict=weights)
    AutoTokenizer.from_pretrained(tokenizer_path).save_pretrained(folder)
