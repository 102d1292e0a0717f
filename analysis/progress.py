"""Scores on disk as they come: a file beside the output, in which a killed scoring goes on where it stopped."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.rows import Row
from trainer.errors import UserError

Key = tuple[str, str]  # variant_id, target_id


class Progress:
    """The rows of one scoring, appended batch by batch. The file's first line says what is scored with what."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the file, or begin it, for this process alone; a last line that was cut off is taken out.

        Raises UserError if another process writes it, and if it belongs to other settings, naming those that differ.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process scores into it: wait for it, or choose another --output.") from None
        self.file.seek(0)
        held = self.file.read()
        whole = held[: held.rfind(b"\n") + 1]
        self.file.truncate(len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            keys = [_key(row) for row in lines[1:]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: is damaged, so what is scored already cannot be told: delete it to begin anew.") from None
        if lines:
            differ = [f"{name} was {lines[0].get(name)!r}" for name in settings if lines[0].get(name) != settings[name]]
            if differ:
                raise UserError(
                    f"{path} holds the scores of another scoring ({', '.join(differ)}): delete it to begin anew, or choose another "
                    "--output."
                )
        else:
            self._append([settings])
        self.done: dict[Key, Row] = dict(zip(keys, lines[1:], strict=True))
        self.found = len(self.done)

    def add(self, rows: Iterable[Row]) -> None:
        """Put rows on disk."""
        rows = list(rows)
        self._append(rows)
        self.done |= {_key(row): row for row in rows}

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Take the file away: its rows have become the output."""
        self.path.unlink()
        self.file.close()


def _key(row: Row) -> Key:
    return row["variant_id"], row["target_id"]
