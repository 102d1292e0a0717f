"""Files written whole or not at all, several at once if they belong together; progress on a terminal."""

import json
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")


@contextmanager
def whole(*paths: Path) -> Iterator[list[Path]]:
    """Give the paths to write to; they take the names `paths` once the block ends well, and go if it does not."""
    partials = [path.with_name(path.name + ".partial") for path in paths]
    made = [folder for path in paths for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _terminated_as_interrupted():
            yield partials
        for partial, path in zip(partials, paths, strict=True):
            partial.replace(path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
        for folder in made:  # the deepest first; what did not end well leaves none behind
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block as an exception does, so that its files are cleared away. Only the main thread may ask for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def line_of(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON, UTF-8 not escaped."""
    return json.dumps(record, ensure_ascii=False)


def write_array(records: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write a JSON array with one record a line (behaviour 1.2), whole or not at all; return how many."""
    count = 0
    with whole(path) as (partial,), partial.open("w", encoding="utf-8") as file:
        for count, record in enumerate(records, 1):
            file.write(("[\n" if count == 1 else ",\n") + "  " + line_of(record))
        file.write("\n]\n" if count else "[]\n")
    return count


def put(file: IO[str], record: Mapping[str, Any]) -> None:
    """Append a record to an open file of JSON lines."""
    file.write(line_of(record) + "\n")


def shown(items: Iterable[Item], name: str, total: int | None = None) -> Iterator[Item]:
    """Pass the items on with a progress bar, on a terminal only."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=total)
        for item in items:
            yield item
            progress.advance(task)
