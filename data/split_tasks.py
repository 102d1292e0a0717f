"""Records to train.json and test.json (JSON lines), by problem: a seeded share goes to the test.

    python data/split_tasks.py --json_path chemistry.json --output_dir datasets/sciknoweval/chemistry --test_ratio 0.1 --seed 42

The draw is the published one (ratio 0.1 and seed 42 give the published SciKnowEval files, record by record). A prompt
that comes twice can then be in both files, as it is once in the published `material`; this is said, and
`--separate_duplicates` moves such records to the test.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from data.reading import read_rows
from data.records import RecordError, text_of
from data.writing import line_of, shown, whole
from trainer.uid import content_uid


def draw(count: int, ratio: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the positions of train and test in their order, as `train_test_split` of the `datasets` library draws them."""
    tests = math.ceil(ratio * count)
    if not 0 < tests < count:
        raise ValueError(
            f"--test_ratio={ratio}: of {count} records, {tests} would go to the test; it needs one at least, and so does train."
        )
    order = np.random.default_rng(seed).permutation(count).tolist()
    return order[tests:], order[:tests]


def spool(path: Path, file: IO[bytes]) -> tuple[list[int], list[str]]:
    """Copy the records into an open file, one a line; return the offset of each and the id of its prompt."""
    offsets, prompts = [], []
    for place, record in shown(read_rows(path), path.name):
        try:
            prompts.append(content_uid("", [{"content": text_of(record, "prompt"), "system": record.get("system")}], ""))
        except (RecordError, AttributeError) as error:
            raise RecordError(f"{place}: {error if isinstance(error, RecordError) else 'not an object'}") from None
        offsets.append(file.tell())
        file.write(f"{line_of(record)}\n".encode())
    return offsets, prompts


def split(path: Path, folder: Path, ratio: float, seed: int, *, separate: bool = False) -> tuple[int, int, int]:
    """Write both files, or none; return the sizes of train and test, and how many train records have a prompt of the test."""
    with tempfile.TemporaryFile() as file:  # records in a drawn order, none of them kept in memory
        offsets, prompts = spool(path, file)
        train, test = draw(len(offsets), ratio, seed)
        asked = {prompts[i] for i in test}
        shared = [i for i in train if prompts[i] in asked]
        if separate:
            moved = set(shared)
            train, test = [i for i in train if i not in moved], [*test, *shared]
            if not train:
                raise ValueError("--separate_duplicates: every prompt of train.json is also in test.json, so that none would be left.")
        with whole(folder / "train.json", folder / "test.json") as partials:
            for partial, chosen in zip(partials, (train, test), strict=True):
                with partial.open("wb") as target:
                    for i in chosen:
                        file.seek(offsets[i])
                        target.write(file.readline())
    return len(train), len(test), len(shared)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json_path", type=Path, required=True, help="records: a JSON array, JSON lines or Parquet")
    parser.add_argument("--output_dir", type=Path, required=True, help="where train.json and test.json go")
    parser.add_argument("--test_ratio", type=float, default=0.1, help="share of the test (default 0.1)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--separate_duplicates", action="store_true", help="no prompt in both files: such records go to the test")
    options = parser.parse_args(arguments)
    try:
        train, test, shared = split(
            options.json_path, options.output_dir, options.test_ratio, options.seed, separate=options.separate_duplicates
        )
    except (RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output_dir}: train.json {train} records, test.json {test} records")
    if shared and not options.separate_duplicates:
        print(f"  {shared} of train.json have a prompt that is also in test.json (--separate_duplicates moves them there)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
