"""Raw rows of a source: streamed from the hub with the `datasets` library, fetched, or from a local copy."""

import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.reading import data_files, read_rows
from data.records import RecordError
from data.sources import Source


class FetchError(Exception):
    """A data set that could not be had; says which, and what to do."""


def raw_rows(source: Source, split: str, local: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of one split, one row at a time; `place` names file or data set and record for errors.

    Args:
        local: a file, or a folder as the hub lays it out, to read instead of fetching.

    Raises:
        FetchError: if the data set cannot be had. RecordError: if a local file cannot be read.
    """
    if local is not None:
        if not local.exists():
            raise FetchError(f"--local_path={local}: no such file or folder. {_how_to_fetch(source)}")
        for file in data_files(local, split, source.pattern, source.config, only=not source.splits) if local.is_dir() else [local]:
            yield from read_rows(file, source.columns)
    elif source.urls:
        yield from _fetched(source, split)
    else:
        rows = _ask(source, lambda: iter(_stream(source, split)))
        number = 0
        while (row := _ask(source, lambda: next(rows, None))) is not None:  # the net may also fail on the way
            number += 1
            yield f"{source.hub} {split}, row {number}", row


def _ask(source: Source, question: Callable[[], Any]) -> Any:
    """Ask the hub, and turn what goes wrong there into a FetchError. The caller's own exceptions pass: it is outside."""
    try:
        return question()
    except Exception as error:  # noqa: BLE001  datasets, huggingface_hub and httpx raise dozens of unrelated types when the net fails
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
        raise FetchError(f"{source.name}: {source.hub} cannot be read from the hub ({reason:.300}). {_how_to_fetch(source)}") from None


def _stream(source: Source, split: str) -> Any:
    """Return an iterable over the rows of a split as the hub has them now."""
    import datasets

    if source.data_files:
        files = [file if "://" in source.hub else f"{_root(source.hub)}/{file}" for file in source.data_files]
        stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    else:
        try:
            stream = datasets.load_dataset(source.hub, source.config, split=split, streaming=True)
        except ValueError as error:
            if source.spare_config is None or "config" not in str(error).lower():
                raise
            stream = datasets.load_dataset(source.hub, source.spare_config, split=split, streaming=True)
    if source.columns and stream.column_names:  # Parquet then reads no other column
        stream = stream.select_columns([name for name in stream.column_names if name in source.columns])
    return stream


def _root(hub: str) -> str:
    return hub if Path(hub).is_dir() else f"hf://datasets/{hub}"


def _how_to_fetch(source: Source) -> str:
    page = f"https://huggingface.co/datasets/{source.hub}"
    gated = f"It is gated: accept its terms at {page} and log in with `hf auth login`. " if source.gated else ""
    local = "Then give the copy: --local_path DIR (or a JSON, JSONL, Parquet or CSV file)."
    return f"{gated}Where there is a network: {source.download()}   {local}"


def _fetched(source: Source, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    url = (source.urls or {}).get(split)
    if url is None:
        raise FetchError(f"{source.name}: there is no split {split!r}; there are {', '.join(source.urls or ())}.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{split}.json"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, file.open("wb") as target:
                shutil.copyfileobj(answer, target)
        except (OSError, urllib.error.URLError) as error:
            raise FetchError(f"{source.name}: {url} cannot be fetched ({error}). {_how_to_fetch(source)}") from None
        try:
            for place, row in read_rows(file):
                yield place.replace(str(file), url), row
        except RecordError as error:
            raise RecordError(str(error).replace(str(file), url)) from None
