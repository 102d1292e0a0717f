"""A public data set to records: a JSON array with one record a line, the same keys whatever the source.

    python data/load_dataset.py --dataset_name Chemistry --output_path datasets/sciknoweval/chemistry.json

From the hub, or from a local copy (--local_path: a file or folder of JSON, JSONL, Parquet or CSV). What the records
become: data/split_tasks.py or data/split_tests.py, then data/preprocess.py. docs/data.md has the sources.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from data.hub import FetchError, raw_rows
from data.records import RecordError, Skip, named
from data.sources import SOURCES, Options, Source, source_named
from data.transfer import download, push
from data.writing import shown, write_array


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if options.download_hf_dataset_name:
            download(options.download_hf_dataset_name, options.download_output_dir)
        elif options.push_dataset_path:
            push(options.push_dataset_path, options.push_hf_dataset_name)
        else:
            load(options)
    except (FetchError, RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def load(options: argparse.Namespace) -> None:
    """Write the records of the data sets named, and say how many rows were left out and why."""
    sources = [source_named(name) for name in options.dataset_name.split(",")]
    dropped: Counter[str] = Counter()
    chosen = Options(options.published_prompts, options.seed)
    copies = [options.local_path / source.dataset if options.local_path and len(sources) > 1 else options.local_path for source in sources]
    made = (record for source, copy in zip(sources, copies, strict=True) for record in records(source, copy, options, chosen, dropped))
    numbered = ({**record, "idx": idx} for idx, record in enumerate(made))
    rows = shown(with_embeddings(part(numbered, options.start_idx, options.num_el), options.embeddings_file), options.dataset_name)
    if options.output_path is None:
        print(f"{sum(1 for _ in rows)} records; --output_path PATH writes them")
    else:
        print(f"{options.output_path}: {write_array(refuse_none(rows, options), options.output_path)} records")
    for reason, count in dropped.most_common():
        print(f"  left out {count}: {reason}")


def records(
    source: Source, local: Path | None, options: argparse.Namespace, chosen: Options, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the records of a source, those of `--category` only. Raises RecordError naming place and field; counts what is left out."""
    category = None if options.category in (None, "false") else options.category.replace("_", " ").lower()
    if category and not source.category:
        raise ValueError(f"--category={options.category}: {source.name} has no categories.")
    split = options.split or source.split
    if split not in (source.splits or (source.split,)):
        raise ValueError(f"--split={split}: {source.name} has {', '.join(source.splits or (source.split,))}.")
    for place, row in raw_rows(source, split, local):
        if not isinstance(row, dict):
            raise RecordError(f"{place} is not an object")
        made = None
        try:
            with named(place, row):
                of_category = not category or not source.category or str(source.category(row)).replace("_", " ").lower() == category
                if of_category and (not source.keep or source.keep(row)):
                    made = source.convert(row, chosen)
        except Skip as reason:
            dropped[str(reason)] += 1
        if made is not None:
            yield made


def part(rows: Iterator[dict[str, Any]], start: int, count: int | None) -> Iterator[dict[str, Any]]:
    """Yield `count` records (all if None) from position `start`; reads no further."""
    if start < 0 or (count is not None and count < 1):
        raise ValueError(f"--start_idx={start} --num_el={count}: the first must be 0 or more, the second 1 or more.")
    for record in rows:
        if record["idx"] >= start:
            yield record
        if count is not None and record["idx"] >= start + count - 1:
            return


def with_embeddings(rows: Iterator[dict[str, Any]], file: Path | None) -> Iterator[dict[str, Any]]:
    """Put row `idx` of a .npy file into each record's `embedding`."""
    if file is None:
        yield from rows
        return
    import numpy as np

    table = np.load(file, mmap_mode="r")
    for record in rows:
        if record["idx"] >= len(table):
            raise RecordError(f"--embeddings_file={file} has {len(table)} rows, fewer than there are records")
        yield {**record, "embedding": table[record["idx"]].tolist()}


def refuse_none(rows: Iterator[dict[str, Any]], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    count = 0
    for count, row in enumerate(rows, 1):  # noqa: B007  counted
        yield row
    if not count:
        raise RecordError(f"{options.dataset_name}: no record is left (--category={options.category}, --start_idx={options.start_idx})")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", help=f"several with commas; one of: {', '.join(SOURCES)}")
    parser.add_argument("--output_path", type=Path, help="the JSON array to write; without it the records are counted only")
    parser.add_argument(
        "--local_path",
        type=Path,
        help="a copy of the raw data: a file or folder of JSON, JSONL, Parquet or CSV; for several sets the folder of DIR/aime24, ...",
    )
    parser.add_argument("--split", help="train or test, where the source has both (default: the published choice)")
    parser.add_argument("--published_prompts", action="store_true", help="the published wording of prompts, for comparisons")
    parser.add_argument("--start_idx", type=int, default=0, help="first record of the output")
    parser.add_argument("--num_el", type=int, help="how many records (default: all)")
    parser.add_argument("--category", help="only this category (GPQA domain, MMLU-Pro category, kind of the corpus); false: all")
    parser.add_argument("--embeddings_file", type=Path, help="a .npy whose row i becomes `embedding` of record i")
    parser.add_argument("--test_ratio", type=float, default=0.0, help="does nothing, as published: data/split_tasks.py splits")
    parser.add_argument("--seed", type=int, default=42, help="of the order of GPQA's options")
    parser.add_argument("--push_dataset_path", type=Path, help="upload this folder of Parquet files ...")
    parser.add_argument("--push_hf_dataset_name", help="... under this name on the hub")
    parser.add_argument("--download_hf_dataset_name", help="download the splits of this hub data set as Parquet ...")
    parser.add_argument("--download_output_dir", type=Path, help="... into this folder")
    options = parser.parse_args(arguments)
    for one, other in (("push_dataset_path", "push_hf_dataset_name"), ("download_hf_dataset_name", "download_output_dir")):
        if (getattr(options, one) is None) != (getattr(options, other) is None):
            parser.error(f"--{one} and --{other} go together")
    if not (options.dataset_name or options.push_dataset_path or options.download_hf_dataset_name):
        parser.error("--dataset_name is needed (or one of the pairs --push_..., --download_...)")
    return options


if __name__ == "__main__":
    sys.exit(main())
