"""What a conversion says at its end: rows, prompt tokens, what was left out and why."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from trainer import rewards
from trainer.chat import Chat
from trainer.errors import UserError


class Tokens:
    """Lengths of prompts as the trainer will see them: chat-templated, with the assistant header."""

    def __init__(self, chat: Chat) -> None:
        self.chat, self.lengths = chat, []

    @staticmethod
    def factory(tokenizer: str | None) -> "Callable[[], Tokens | None]":
        """Return what makes a counter for each file, or None without a tokenizer. Raises ValueError if it cannot be loaded."""
        if tokenizer is None:
            return lambda: None
        from transformers import AutoTokenizer

        try:
            chat = Chat(AutoTokenizer.from_pretrained(tokenizer))
        except (OSError, ValueError) as error:
            raise ValueError(f"--tokenizer={tokenizer} cannot be loaded ({str(error).splitlines()[0]}).") from None
        return lambda: Tokens(chat)

    def add(self, messages: Sequence[dict[str, Any]]) -> None:
        self.lengths.append(len(self.chat.prompt_ids(messages)))

    def __str__(self) -> str:
        """Mean, 99th percentile, maximum."""
        lengths = np.asarray(self.lengths)
        return f"{lengths.mean():.0f} / {np.percentile(lengths, 99):.0f} / {lengths.max()}"


def print_summary(parts: Sequence[Any], output: Path) -> None:
    """Print a table of the files written, and what one should know of them."""
    table = Table(box=None, pad_edge=False)
    counted = any(part.tokens for part in parts)
    for name in ("file", "rows", "left out", *(["prompt tokens (mean / p99 / max)"] if counted else []), "data source"):
        table.add_column(name, justify="left" if name in ("file", "data source") else "right", overflow="fold")
    for part in parts:
        sources = ", ".join(f"{name}" if len(part.sources) == 1 else f"{name} {count}" for name, count in part.sources.most_common())
        counts = (str(part.rows), str(sum(part.dropped.values())))
        table.add_row(str(output / f"{part.split}.parquet"), *counts, *([str(part.tokens)] if counted else []), sources)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    for part in parts:
        for reason, count in part.dropped.most_common():
            console.print(f"  {part.split}: left out {count}: {reason}", markup=False)
    for name in sorted({name for part in parts for name in part.sources}):
        try:
            rewards.entry_of(name)
        except UserError:
            console.print(f"  note: no verifier judges {name!r}; the run needs custom_reward_function.path", markup=False)
