"""Code records to train.json and test.json (JSON lines): the published split by tests, or a held-out one by problem.

    python data/split_tests.py --json_path datasets/lcb_v6.json --output_dir datasets/lcb_v6
    python data/split_tests.py --json_path datasets/lcb_v6.json --output_dir datasets/lcb_v6_held_out --held_out

Without `--held_out`, as published: test.json is everything; train.json is the same problems with a random half of
their tests. It trains on the very problems that it evaluates (behaviour 1.4). With it, whole problems are put apart by
the date of their contest: the earlier ones train, the later ones test, with all their tests, and none is in both.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script, from any folder

from data.reading import read_rows
from data.records import RecordError, Skip, choose_tests, load_tests, text_of
from data.writing import put, shown, whole
from trainer.uid import content_uid

Tests = dict[str, Any]


def problems(path: Path) -> Iterator[tuple[str, dict[str, Any], Tests]]:
    """Yield (place, record, its tests). Raises RecordError naming place and field."""
    for place, record in shown(read_rows(path), path.name):
        if not isinstance(record, dict):
            raise RecordError(f"{place} is not an object")
        try:
            yield place, record, load_tests(record.get("tests"))
        except (RecordError, Skip) as error:
            raise RecordError(f"{place}: {error}") from None


def half(tests: Tests, random: np.random.RandomState) -> Tests:
    """Return a random half of the tests, one at least, in their order."""
    count = len(tests["inputs"])
    return choose_tests(tests, sorted(random.choice(count, size=max(1, count // 2), replace=False).tolist()))


def split_by_tests(path: Path, folder: Path) -> str:
    """Write both files, or none: all problems, in train.json with half of their tests. Returns a summary."""
    random, halves, alls = np.random.RandomState(0), [], []  # one generator for the file, as published
    with (
        whole(folder / "train.json", folder / "test.json") as (train, test),
        train.open("w", encoding="utf-8") as train_file,
        test.open("w", encoding="utf-8") as test_file,
    ):
        for _, record, tests in problems(path):
            part = half(tests, random)
            halves.append(len(part["inputs"]))
            alls.append(len(tests["inputs"]))
            put(train_file, {**record, "tests": json.dumps(part, ensure_ascii=False)})
            put(test_file, record)
    return (
        f"{folder}: {len(alls)} problems in both files; tests per problem: train {np.mean(halves):.1f}, test {np.mean(alls):.1f}\n"
        "  the training problems are the evaluation problems; --held_out puts problems apart"
    )


def day(text: str) -> str:
    """Return a date YYYY-MM-DD of the command line as it is; raise ValueError if it is none."""
    date.fromisoformat(text)
    if len(text) != len("YYYY-MM-DD"):
        raise ValueError(text)  # 20250401 is a date too, but does not sort among the others
    return text


def key_of(record: dict[str, Any], place: str) -> tuple[str, str]:
    """Return the problem's identity (its prompt) and its contest date, YYYY-MM-DD."""
    try:
        contest = text_of(record, "contest_date")[:10]
        day(contest)
        return content_uid("", [{"content": " ".join(text_of(record, "prompt").split())}], ""), contest
    except RecordError as error:
        raise RecordError(f"{place}: {error}; --held_out goes by it") from None
    except ValueError:
        raise RecordError(f"{place}: field 'contest_date' is {contest!r}, not a date YYYY-MM-DD; --held_out goes by it") from None


def first_test_date(dates: list[str], ratio: float) -> str:
    """Return the date from which problems are tested: the latest that leaves at least `ratio` of the problems to the test.

    Raises ValueError where no date leaves anything to train on: all contests on one day.
    """
    later = sorted(dates)
    cut = later[len(later) - max(1, min(len(later), round(ratio * len(later))))]
    if cut == later[0]:
        later_dates = sorted({date for date in dates if date > cut})
        if not later_dates:
            raise ValueError(f"--held_out: all contests are of {cut}, so there is no earlier one to train on.")
        cut = later_dates[0]
    return cut


def split_held_out(path: Path, folder: Path, ratio: float, start: str | None) -> str:
    """Write both files, or none: problems of contests before a date train, the others test. Returns a summary.

    A problem that comes twice goes where its latest contest goes.
    """
    latest: dict[str, str] = {}
    for place, record, _ in problems(path):
        key, date = key_of(record, place)
        latest[key] = max(date, latest.get(key, ""))
    start = start or first_test_date(list(latest.values()), ratio)
    counts = {"train": 0, "test": 0}
    with (
        whole(folder / "train.json", folder / "test.json") as (train, test),
        train.open("w", encoding="utf-8") as train_file,
        test.open("w", encoding="utf-8") as test_file,
    ):
        for place, record, _ in problems(path):
            side = "train" if latest[key_of(record, place)[0]] < start else "test"
            counts[side] += 1
            put(train_file if side == "train" else test_file, record)
        if not all(counts.values()):
            raise ValueError(f"--test_from={start}: {counts['train']} problems are earlier and {counts['test']} are not; both need one.")
    return f"{folder}: train.json {counts['train']} problems before {start}, test.json {counts['test']} from then on; none in both"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json_path", type=Path, required=True, help="code records: a JSON array, JSON lines or Parquet")
    parser.add_argument("--output_dir", type=Path, required=True, help="where train.json and test.json go")
    parser.add_argument("--held_out", action="store_true", help="put problems apart by contest date")
    parser.add_argument("--test_ratio", type=float, default=0.3, help="with --held_out: share of the problems to test (default 0.3)")
    parser.add_argument(
        "--test_from", type=day, metavar="YYYY-MM-DD", help="with --held_out: the first contest date to test, instead of a share"
    )
    options = parser.parse_args(arguments)
    if not 0 < options.test_ratio < 1:
        parser.error(f"--test_ratio={options.test_ratio}: it must lie between 0 and 1")
    try:
        if options.held_out:
            summary = split_held_out(options.json_path, options.output_dir, options.test_ratio, options.test_from)
        else:
            summary = split_by_tests(options.json_path, options.output_dir)
    except (RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
