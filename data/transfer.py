"""Whole data sets to and from the hub, as Parquet files with one schema (behaviour 1.2)."""

from pathlib import Path
from typing import Any

from data.hub import FetchError
from data.writing import whole

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}  # file -> split


def download(name: str, folder: Path) -> None:
    """Write each split of a hub data set as `<split>.parquet`, all of them or none; `val` becomes `validation`."""
    import datasets

    try:
        parts = datasets.load_dataset(name)
    except Exception as error:  # noqa: BLE001  datasets, huggingface_hub and httpx raise dozens of unrelated types when the net fails
        raise FetchError(f"--download_hf_dataset_name={name} cannot be read from the hub ({type(error).__name__}: {error}).") from None
    targets = [folder / f"{SPLITS.get(split, split)}.parquet" for split in parts]
    with whole(*targets) as partials:
        for split, partial in zip(parts, partials, strict=True):
            parts[split].to_parquet(partial)
    for split, target in zip(parts, targets, strict=True):
        print(f"{target}: {len(parts[split])} rows")


def push(folder: Path, name: str) -> None:
    """Upload a data set saved by the `datasets` library, or a folder of Parquet files, one split each.

    Columns that a file lacks are filled with nulls of the type that another has. Raises FetchError if the upload fails.
    """
    parts = _saved(folder)
    try:
        parts.push_to_hub(name)
    except Exception as error:  # noqa: BLE001  as in `download`
        raise FetchError(
            f"--push_hf_dataset_name={name} could not be uploaded ({type(error).__name__}: {error}); `hf auth login`?"
        ) from None
    print(f"{name}: {', '.join(f'{split} {len(part)} rows' for split, part in parts.items())}")


def _saved(folder: Path) -> Any:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(folder))
    if (folder / "state.json").is_file():
        return datasets.DatasetDict(train=datasets.load_from_disk(str(folder)))
    files = sorted(folder.glob("*.parquet"))
    known = [file for file in files if file.stem in SPLITS]
    if not files:
        raise ValueError(f"--push_dataset_path={folder} holds no Parquet file.")
    parts = {SPLITS.get(file.stem, file.stem): datasets.Dataset.from_parquet(str(file)) for file in known or files}
    kinds = {column: kind for part in parts.values() for column, kind in part.features.items()}
    for split, part in parts.items():
        for column in sorted(kinds.keys() - set(part.column_names)):
            part = part.add_column(column, [None] * len(part), feature=kinds[column])  # noqa: PLW2901  one more column each time
        parts[split] = part.select_columns(sorted(kinds))
    return datasets.DatasetDict(parts)
