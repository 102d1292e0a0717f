"""Prompts from Parquet: read, checked, templated, ordered. All complaints come here, before any model loads."""

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer import rewards
from trainer.chat import Chat
from trainer.errors import UserError
from trainer.seeds import generator
from trainer.types import Prompt
from trainer.uid import content_uid, numbered

COLUMNS = ("prompt", "data_source", "reward_model", "extra_info")


@dataclass(frozen=True)
class Loaded:
    """The prompts that fit, in file order, and how many were too long."""

    prompts: tuple[Prompt, ...]
    too_long: int


def load_prompts(
    files: Sequence[str], chat: Chat, *, split: str, max_prompt_length: int, drop_overlong: bool, any_source: bool = False
) -> Loaded:
    """Read the prompts of several files, in order.

    Args:
        files: Parquet files, or folders that hold `<split>.parquet`.
        split: "train" or "test": the file to take in a folder, and the key named in errors.
        drop_overlong: leave out and count prompts longer than `max_prompt_length` tokens; else refuse them.
        any_source: a custom reward function judges, so `data_source` need not be known.

    Raises:
        UserError: for a missing or unreadable file, a missing column, a malformed row, an unknown data source, or
            when no prompt is short enough.
    """
    key = "data.train_files" if split == "train" else "data.val_files"
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    too_long, row_number = 0, 0
    for file in files:
        path = find_file(file, split, key)
        for number, row in enumerate(_rows(path, key)):
            where = f"{path}, row {number}"
            messages, truth = _messages(row["prompt"], where), _truth(row, where)
            if not any_source:
                try:
                    rewards.entry_of(row["data_source"])
                except UserError as error:
                    raise UserError(f"{where}: {error}") from None
            prompt = Prompt(
                uid=_uid(row, messages, truth, where, seen),
                data_source=row["data_source"],
                messages=messages,
                ground_truth=truth,
                extra_info=row["extra_info"] or {},
                index=row_number,
                token_ids=chat.prompt_ids(messages),
            )
            row_number += 1
            if len(prompt.token_ids) > max_prompt_length:
                if not drop_overlong:
                    raise UserError(
                        f"{where}: the prompt takes {len(prompt.token_ids)} tokens, more than data.max_prompt_length={max_prompt_length}; "
                        "raise it, or leave such prompts out with data.filter_overlong_prompts=True."
                    )
                too_long += 1
                continue
            prompts.append(prompt)
    if not prompts:
        reason = (
            f"all {too_long} prompts are longer than data.max_prompt_length={max_prompt_length} tokens" if too_long else "there are no rows"
        )
        raise UserError(f"{key}={list(files)}: {reason}.")
    return Loaded(tuple(prompts), too_long)


def find_file(file: str, split: str, key: str) -> Path:
    """Return the Parquet file that `file` names; raise UserError with the command that makes it if there is none."""
    path = Path(file)
    if path.is_dir():
        inner = path / f"{split}.parquet"
        if not inner.is_file():
            raise UserError(f"{key}={file}: this folder holds no {split}.parquet. {_make_data(path, split)}")
        return inner
    if not path.is_file():
        raise UserError(f"{key}={file}: no such file. {_make_data(path.parent if path.suffix else path, split)}")
    return path


def _make_data(folder: Path, split: str) -> str:
    """Return how to make the Parquet files of a folder, as it works from anywhere."""
    scripts = Path(__file__).resolve().parent.parent / "data"
    here = scripts.relative_to(Path.cwd()) if scripts.is_relative_to(Path.cwd()) else scripts
    own = f"python {shlex.quote(str(here / 'preprocess.py'))} --data_source {shlex.quote(str(folder))}"
    name = _prepared_name(folder, scripts)
    if name is None:
        return f"Put {split}.json into {folder} and make it: {own}"
    return f"Make it: bash {shlex.quote(str(here / 'prepare_all.sh'))} {name}   or from your own {split}.json in {folder}: {own}"


def _prepared_name(folder: Path, scripts: Path) -> str | None:
    """Return the NAME with which data/prepare_all.sh fills a folder, None if it does not."""
    script, base = scripts / "prepare_all.sh", (scripts.parent / "datasets").resolve()
    folder = folder.resolve()
    if not script.is_file() or not folder.is_relative_to(base):
        return None
    names = re.search(r"^NAMES=\((.*?)\)", script.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    name = folder.relative_to(base).as_posix()
    return name if names and name in names[1].split() else None


def _rows(path: Path, key: str):
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{key}: {path} cannot be read as Parquet ({error}).") from None
    missing = [name for name in COLUMNS if name not in table.schema_arrow.names]
    if missing:
        raise UserError(
            f"{key}: {path} has no column {', '.join(map(repr, missing))} "
            f"(it has {', '.join(table.schema_arrow.names)}); data/preprocess.py writes all of them."
        )
    try:
        for batch in table.iter_batches(columns=[*COLUMNS, *(["uid"] if "uid" in table.schema_arrow.names else [])]):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{key}: {path} is damaged ({error}); make it again.") from None


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    if value is None or value == []:
        raise UserError(f"{where}: the prompt is empty; it must be a list of chat messages.")
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{where}: the prompt is {value!r:.60}; it must be a list of chat messages, each with role and content.")
    for message in value:
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                raise UserError(f"{where}: a message of the prompt has no {field}.")
    if not value[-1]["content"].strip():
        raise UserError(f"{where}: the last message of the prompt is empty.")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _truth(row: dict[str, Any], where: str) -> str:
    """Return the ground truth of a row whose other fields are what they should be."""
    if not isinstance(row["data_source"], str):
        raise UserError(f"{where}: data_source is {row['data_source']!r}; it must name the verifier.")
    reward, info = row["reward_model"], row["extra_info"]
    if not isinstance(reward, dict) or reward.get("ground_truth") is None:
        raise UserError(f"{where}: reward_model is {reward!r:.60}; it must hold style and ground_truth.")
    if info is not None and not isinstance(info, dict):
        raise UserError(f"{where}: extra_info is {info!r:.60}; it must be a struct or null.")
    return str(reward["ground_truth"])


def _uid(row: dict[str, Any], messages: list[dict[str, str]], truth: str, where: str, seen: dict[str, int]) -> str:
    """Return the row's uid, or one of its content where the file has none; repeats over all files get a number."""
    uid = row.get("uid")
    if uid is not None and (not isinstance(uid, str) or not uid.strip()):
        raise UserError(f"{where}: uid is {uid!r:.40}; it must be text, or null for one made from the content.")
    return numbered(uid or content_uid(row["data_source"], messages, truth), seen)


@dataclass(frozen=True)
class PromptOrder:
    """Which prompts make up each step's batch: a seeded order per epoch, the rest that fills no batch left out.

    The batch is a function of the step, so there is no position to save.
    """

    count: int
    batch: int
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        if self.count < self.batch:
            raise UserError(f"data.train_batch_size={self.batch} is more than the {self.count} training prompts: lower it or add data.")

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.batch

    def batch_of(self, step: int) -> list[int]:
        """Return the positions of the prompts of step 1, 2, ..."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        order = generator(self.seed, "prompt order", epoch).permutation(self.count) if self.shuffle else np.arange(self.count)
        return order[place * self.batch : (place + 1) * self.batch].tolist()

    def fingerprint(self, prompts: Sequence[Prompt]) -> str:
        """Return a hash of the data and its order, kept with checkpoints."""
        text = json.dumps([[prompt.uid for prompt in prompts], self.batch, self.seed, self.shuffle])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
