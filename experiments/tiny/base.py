"""Warm up a tiny Qwen3 on (messages, response) pairs: next-token cross-entropy on the response, AdamW, cosine."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, Qwen3Config, logging

import trainer.attention  # noqa: F401  registers "forest"
from trainer import forest
from trainer.attention import plan_attention
from trainer.chat import Chat
from trainer.fused import head_loss
from trainer.models import ForestLM
from trainer.scores import Scores


@dataclass(frozen=True)
class Shape:
    """A small Qwen3."""

    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 256


@dataclass(frozen=True)
class WarmUp:
    """How long and how fast."""

    steps: int = 1000
    batch: int = 32
    lr: float = 6e-3
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """Prompt ids, response ids with the end-of-turn token, and which response tokens are trained on."""

    prompt: np.ndarray
    response: np.ndarray
    trained: np.ndarray


def warm_up(folder: Path, chat: Chat, shape: Shape, schedule: WarmUp, draw: Callable[[np.random.Generator], Example], label: str) -> None:
    """Train a model from scratch on examples from `draw` and save it, its tokenizer beside, as a model folder."""
    logging.disable_progress_bar()
    torch.manual_seed(schedule.seed)
    lm = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(chat.tokenizer),
            num_key_value_heads=shape.num_attention_heads,
            head_dim=shape.hidden_size // shape.num_attention_heads,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=chat.tokenizer.eos_token_id,
            pad_token_id=chat.tokenizer.pad_token_id,
            **asdict(shape),
        ),
        attn_implementation="forest",
    )
    model = ForestLM(lm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    rng = np.random.default_rng(schedule.seed)
    with Progress(transient=True) as progress:
        for step in progress.track(range(schedule.steps), description=label):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / schedule.steps)) / 2
            _loss(model, [draw(rng) for _ in range(schedule.batch)]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    lm.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)


def _loss(model: ForestLM, examples: list[Example]) -> torch.Tensor:
    packed = forest.build([(example.prompt, example.response) for example in examples])
    targets = torch.from_numpy(np.concatenate([example.response for example in examples])).long()
    trained = torch.from_numpy(np.concatenate([example.trained for example in examples])).float()

    def token_loss(scores: Scores, rows: slice):
        return -(scores.student_logp * trained[rows]).sum() / trained.sum(), {}

    return model(packed, plan_attention(packed), lambda hidden, head: head_loss(hidden, head, token_loss, targets=targets)[0])


def example(chat: Chat, prompt: np.ndarray, response: str, untrained: int | None = None) -> Example:
    """Return an example of a response text, its end-of-turn token added; token `untrained` is left out of the loss."""
    ids = np.append(chat.encode(response), chat.tokenizer.eos_token_id).astype(np.int32)
    trained = np.ones(len(ids), bool)
    if untrained is not None:
        trained[untrained] = False
    return Example(prompt, ids, trained)
