"""JSON lines as the analysis reads and writes them: every complaint names file and line, every file is whole or absent."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.writing import put, whole
from trainer.errors import UserError
from trainer.files import write_text

Row = dict[str, Any]
Fields = Mapping[str, type | tuple[type, ...]]  # name -> float for a finite number, else the types its value may have

__all__ = ["Fields", "Row", "read_jsonl", "require", "write_json", "write_jsonl", "write_text"]


def read_jsonl(path: Path | str, fields: Fields | None = None) -> Iterator[tuple[str, Row]]:
    """Yield ("file:line", row) of a file of JSON objects, one a line; blank lines are passed over.

    Args:
        fields: checked in every row, as by `require`.

    Raises:
        UserError: for a missing or empty file, a line that is cut off, no JSON or no object, and for what is no UTF-8.
    """
    path, empty = Path(path), True
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: is not UTF-8 ({error.reason}).") from None
            except RecursionError:
                raise UserError(f"{where}: is nested too deeply.") from None
            except json.JSONDecodeError as error:
                if not line.endswith(b"\n"):
                    raise UserError(
                        f"{where}: the last line is cut off: the file was not written to its end. Make it again, or take the line out."
                    ) from None
                raise UserError(f"{where}: is not JSON ({error.msg} at column {error.colno}).") from None
            if b"\\ud" in line.lower() and not _encodable(row):
                raise UserError(f"{where}: holds half of a surrogate pair (\\udXXX), which is no character. Take it out, or write U+FFFD.")
            if not isinstance(row, dict):
                raise UserError(f"{where}: holds {_kind(row)} where an object is needed.")
            require(row, where, fields or {})
            empty = False
            yield where, row
    if empty:
        raise UserError(f"{path}: holds no row.")


def require(row: Mapping[str, Any], where: str, fields: Fields) -> None:
    """Raise UserError, naming the place, unless the row has all fields with values of their types.

    `float` takes integers too, but neither truth values nor NaN or infinity; `int` takes no truth values.
    """
    for name, types in fields.items():
        if name not in row:
            raise UserError(f"{where}: has no field {name!r} (it has {', '.join(row) or 'none'}).")
        allowed = types if isinstance(types, tuple) else (types,)
        if not any(_is(row[name], kind) for kind in allowed):
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise UserError(f"{where}: field {name!r} is {row[name]!r:.60}, which is not {wanted}.")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a single value")


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line, UTF-8 not escaped, row by row, whole or not at all; return how many."""
    count = 0
    with whole(Path(path)) as (partial,), partial.open("w", encoding="utf-8") as file:
        for row in rows:
            put(file, row)
            count += 1
    return count


def write_json(path: Path | str, value: Any) -> None:
    """Write one JSON value, indented by two, UTF-8 not escaped, whole or not at all."""
    write_text(Path(path), json.dumps(value, ensure_ascii=False, indent=2) + "\n")
