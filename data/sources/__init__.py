"""The table of sources. To add one: its file with a `convert` and its `SOURCES`, and its name in this list."""

import difflib
from collections.abc import Iterable

from data.sources import codeforces, evalplus, gpqa, livecodebench, math, mmlu_pro, ready, sciknoweval
from data.sources.base import Options, Source

__all__ = ["SOURCES", "Options", "Source", "recognise", "source_named"]

FAMILIES = (sciknoweval, ready, livecodebench, math, gpqa, mmlu_pro, codeforces, evalplus)
SOURCES: dict[str, Source] = {source.name: source for family in FAMILIES for source in family.SOURCES}


def source_named(name: str) -> Source:
    """Return a source. Raises ValueError for an unknown name, listing the known ones, the nearest first."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"--dataset_name={name}: no such data set.{hint} Known: {', '.join(SOURCES)}.")


def recognise(columns: Iterable[str]) -> Source | None:
    """Return the source whose raw rows have these columns; None if none does, or the columns do not tell."""
    present = set(columns)
    return next((source for source in SOURCES.values() if source.recognised and present.issuperset(source.columns)), None)
