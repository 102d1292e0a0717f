"""Files written whole or not at all."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers, and a crash at any moment, see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, UTF-8 not escaped, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote, or what an appender left: a last line without its end is dropped."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def set_aside(path: Path) -> Path | None:
    """Rename an existing file or folder to NAME.old-<k>, the first free k, and return where it went; None if absent."""
    if not path.exists():
        return None
    k = 1
    while (aside := path.with_name(f"{path.name}.old-{k}")).exists():
        k += 1
    path.rename(aside)
    return aside


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` within the block; raise UserError if another process holds it. Ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{what} is already going on (process {file.read().strip() or 'unknown'}): wait for it, or take a suffix."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
