"""Records to the Parquet the trainer reads: DIR/{train,test}.json -> DIR/{train,test}.parquet.

    python data/preprocess.py --data_source datasets/sciknoweval/chemistry

DIR may also be a raw public folder: Parquet shards, in it or in its data/, whose columns tell the source, such as
DeepMath-103K (train only). Records are those of the published project (behaviour 1.5, 1.7), as a JSON array or one per
line. Files are converted record by record in bounded memory; all of them are written, whole, or none.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from data.reading import read_rows
from data.records import RecordError, Skip, named
from data.rows import SCHEMA, to_row, write_parquet, write_rows
from data.sources import Options, Source, recognise
from data.summary import Tokens, print_summary
from data.writing import shown, whole
from trainer.uid import numbered

__all__ = ["SCHEMA", "RecordError", "convert", "main", "to_row", "write_parquet"]

SPLITS = ("train", "test")


@dataclass
class Part:
    """One output file: where its records come from, and what became of them."""

    split: str
    files: list[Path]
    source: Source | None = None  # of raw rows; None: the files hold records
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    tokens: Tokens | None = None


def convert(source: Path, target: Path, split: str) -> int:
    """Convert a file of records to Parquet; return the number of rows. Raises RecordError for a malformed record."""
    return write_parquet(rows_of(Part(split, [source]), {}, Options()), target)


def rows_of(part: Part, seen: dict[str, int], options: Options) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part and count them in it; `seen` makes their uids unique over all parts."""
    columns = part.source.columns if part.source else ()
    for file in part.files:
        for place, given in read_rows(file, columns):
            try:
                record = given
                if part.source:
                    record = {**convert_raw(part.source, given, options, place), "idx": part.rows}
                row = to_row(record, part.split, place, published=options.published_prompts)
            except Skip as reason:
                part.dropped[str(reason)] += 1
                continue
            row["uid"] = numbered(row["uid"], seen)
            part.rows += 1
            part.sources[row["data_source"]] += 1
            if part.tokens:
                part.tokens.add(row["prompt"])
            yield row


def convert_raw(source: Source, row: dict[str, Any], options: Options, place: str) -> dict[str, Any]:
    with named(place, row):
        return source.convert(row, options)


def find_parts(folder: Path) -> list[Part]:
    """Return what a folder holds: records in train.json and test.json, else raw Parquet shards.

    Raises RecordError if it holds neither, or shards whose columns do not tell what they are.
    """
    found = [Part(split, [folder / f"{split}.json"]) for split in SPLITS if (folder / f"{split}.json").is_file()]
    if found:
        return found
    shards = [file for place in (folder / "data", folder) if place.is_dir() for file in sorted(place.glob("*.parquet"))]
    columns = {file: pq.read_schema(file).names for file in shards}
    raw = [file for file in shards if "reward_model" not in columns[file]]  # the others are what this script wrote
    if not raw:
        raise RecordError(f"{folder} holds neither train.json nor test.json, nor Parquet files of a public data set")
    parts = []
    for split in SPLITS:
        files = [file for file in raw if split_of(file) == split]
        sources = {recognise(columns[file]) for file in files}
        if None in sources or len(sources) > 1:
            raise RecordError(
                f"{files[0]}: its columns ({', '.join(columns[files[0]])}) do not tell the data set; "
                "data/load_dataset.py --dataset_name NAME --local_path DIR makes records of it"
            )
        if files:
            parts.append(Part(split, files, sources.pop()))
    return parts


def split_of(file: Path) -> str:
    """Return the split a shard belongs to, by its name: train-00000-of-00010.parquet; train where it does not say test."""
    return "test" if file.name.startswith(("test", "val")) else "train"


def preprocess(folder: Path, output: Path, options: Options, tokens: Callable[[], Tokens | None]) -> list[Part]:
    """Write the Parquet files of a folder, all or none; return the parts with their counts."""
    parts, seen = find_parts(folder), {}
    targets = [output / f"{part.split}.parquet" for part in parts]
    with whole(*targets) as partials:
        for part, partial in zip(parts, partials, strict=True):
            part.tokens = tokens()
            names = f"{part.files[0].name}{f' and {len(part.files) - 1} more' if len(part.files) > 1 else ''}"
            write_rows(shown(rows_of(part, seen, options), names, total=_known(part)), partial)
            if not part.rows:
                raise RecordError(f"{part.files[0]}: no row is left ({dict(part.dropped)})")
    return parts


def _known(part: Part) -> int | None:
    return sum(pq.read_metadata(file).num_rows for file in part.files) if part.source else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_source", type=Path, required=True, help="folder with train.json and test.json, or with raw Parquet shards")
    parser.add_argument("--output_dir", type=Path, help="where to write; default: the same folder")
    parser.add_argument("--tokenizer", help="count prompt tokens with this tokenizer (a folder or a hub name)")
    parser.add_argument("--published_prompts", action="store_true", help="the published wording, two-option questions included")
    parser.add_argument("--seed", type=int, default=42, help="of option shuffles in raw folders")
    options = parser.parse_args(arguments)
    output = options.output_dir or options.data_source
    try:
        tokens = Tokens.factory(options.tokenizer)
        parts = preprocess(options.data_source, output, Options(options.published_prompts, options.seed), tokens)
    except (RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_summary(parts, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
