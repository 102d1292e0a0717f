"""What a person sees: a live line with progress, warnings above it, tables at the end. Plain lines without a terminal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

SHOWN = (
    ("score", "critic/score/mean", "{:.2f}"),
    ("length", "response_length/mean", "{:.0f}"),
    ("loss", "actor/pg_loss", "{:.4f}"),
    ("grad", "actor/grad_norm", "{:.2f}"),
    ("entropy", "actor/entropy", "{:.3f}"),
    ("mixed", "health/groups_mixed", "{:.0%}"),
)


class Display:
    """Progress and results on the terminal; `enabled=False` says nothing but warnings."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.console = Console(highlight=False)
        self.progress: Progress | None = None
        self.task: Any = None

    def say(self, text: str) -> None:
        """Print a line."""
        if self.enabled:
            self.console.print(text, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning, above the live line."""
        self.console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)

    def show(self, table: Table) -> None:
        """Print a table."""
        if self.enabled:
            self.console.print(table)

    @contextmanager
    def live(self, done: int, total: int) -> Iterator[None]:
        """Show a progress bar over training steps within the block; without a terminal, a line per step."""
        if not (self.enabled and self.console.is_terminal):
            yield
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
        )
        with Progress(*columns, console=self.console) as self.progress:
            self.task = self.progress.add_task("training", total=total, completed=done, values="")
            yield
        self.progress = None

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Name what is going on besides training."""
        if self.progress is not None:
            self.progress.update(self.task, description=what)
        yield
        if self.progress is not None:
            self.progress.update(self.task, description="training")

    def step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show a training step."""
        values = "  ".join(f"{label} {form.format(metrics[name])}" for label, name, form in SHOWN if name in metrics)
        if self.progress is not None:
            self.progress.update(self.task, completed=step, values=values)
        else:
            self.say(f"step {step}/{total}  {values}  {metrics['timing_s/step']:.1f} s")

    def validation(self, step: int, result: Mapping[str, Any]) -> None:
        """Show a validation in one line per source."""
        for source, values in result["sources"].items():
            core = "  ".join(f"{what} {_percent(values[what])}" for what in core_names(result["n"], values))
            self.say(f"validation at step {step}  {source}  {core}")

    def table(self, title: str, columns: Mapping[str, Mapping[str, Any] | None]) -> None:
        """Print mean@n and pass@n per source, one column per validation (e.g. before and after)."""
        shown = {name: result for name, result in columns.items() if result is not None}
        if not shown or not self.enabled:
            return
        table = Table("source", "measure", *shown, title=title, caption="in %, with 95 % bootstrap intervals over prompts")
        first = next(iter(shown.values()))
        for source in first["sources"]:
            for what in core_names(first["n"], first["sources"][source]):
                cells = [_percent(result["sources"].get(source, {}).get(what)) for result in shown.values()]
                table.add_row(source, what.removeprefix("acc/"), *cells)
        self.console.print(table)


def core_names(n: int, values: Mapping[str, Any]) -> list[str]:
    """Return acc/mean@n and acc/pass@n of n samples, and the solve rate where it is not the same thing."""
    names = [f"acc/mean@{n}", f"acc/pass@{n}"]
    if values[f"acc/mean@{n}"]["value"] != values[f"solved/mean@{n}"]["value"]:
        names.append(f"solved/mean@{n}")
    return names


def _percent(estimate: Mapping[str, float] | None) -> str:
    if estimate is None:
        return "-"
    value = f"{100 * estimate['value']:.1f}"
    return value if estimate["low"] is None else f"{value} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
