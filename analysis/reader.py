"""The model that reads: a folder, a hub name, or a checkpoint of ours with the settings of its run."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from trainer import config as config_module
from trainer.checkpoint import model_folder, read_state
from trainer.config.schema import Config
from trainer.errors import UserError


@dataclass(frozen=True)
class Reader:
    """What `--model` names: `path` is for `from_pretrained`; `checkpoint` the global_step_N folder it lies in, if it is one
    of ours, and `averaged` whether that holds an EMA teacher; `config` the settings of the run, or the defaults."""

    path: str
    config: Config
    checkpoint: Path | None = None
    averaged: bool = False


def add_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags that `find` reads."""
    parser.add_argument(
        "--model", required=required, help="a folder, a hub name, or a run's checkpoints (its newest, or .../global_step_N)"
    )
    parser.add_argument("--config-name", default="sdpo", help="settings of a model that is no checkpoint of ours (default: sdpo)")
    parser.add_argument(
        "--settings", type=Path, metavar="CONFIG.YAML", help="those of a run (logs/NAME/config.yaml), for the model that it began with"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, as for training: data.apply_chat_template_kwargs..."
    )


def find(model: str, config_name: str = "sdpo", overrides: Sequence[str] = (), settings: Path | None = None) -> Reader:
    """Return what a `--model` names, its settings those of its run if it is a checkpoint of ours, changed by `overrides`.

    `settings` is the config.yaml of a run: for the model it began with, which knows of no run.
    Raises UserError for a folder that is neither, a checkpoint that is not whole, and for unknown or wrong settings.
    """
    folder = model_folder(Path(model)) if Path(model).is_dir() else None
    checkpoint = folder.parent if folder is not None and (folder.parent / "trainer.json").is_file() else None
    state = read_state(checkpoint) if checkpoint is not None else {"config": {}, "teacher": False}
    recorded = state["config"] if settings is None else read_settings(settings)
    composed = config_module.compose_recorded(recorded, config_name, list(overrides))
    if not any(
        override.lstrip("+").startswith("data.max_prompt_length=") for override in overrides
    ):  # the dump's prompts are as long as they are
        budget = OmegaConf.select(composed, "actor_rollout_ref.actor.self_distillation.max_reprompt_len")
        if isinstance(budget, int) and budget > 0:
            OmegaConf.update(composed, "data.max_prompt_length", min(composed.data.max_prompt_length, budget))
    path = model if folder is None else str(folder)
    OmegaConf.update(composed, "actor_rollout_ref.model.path", path)
    return Reader(path, config_module.typed(composed), checkpoint, bool(state["teacher"]))


def read_settings(path: Path) -> dict[str, Any]:
    """Return what a run wrote as its config.yaml. Raises UserError if that is no such file."""
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no settings of a run ({error}).") from None
    if not isinstance(settings, dict) or "actor_rollout_ref" not in settings:
        raise UserError(f"{path}: no settings of a run: it has no actor_rollout_ref. A run writes them as logs/NAME/config.yaml.")
    return settings


def weights_of(reader: Reader, asked: str | None) -> str:
    """Return whose weights score, "ema" or "student": what is asked for, else the EMA teacher's where there is one."""
    if asked == "ema" and not reader.averaged:
        held = "no checkpoint of ours" if reader.checkpoint is None else "a checkpoint without an EMA teacher"
        raise UserError(f"--teacher ema: {reader.path} is {held}; --teacher student takes the model's own weights.")
    return asked or ("ema" if reader.averaged else "student")
