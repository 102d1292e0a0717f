"""Checkpoint folders: written beside, renamed when whole, `latest_checkpointed_iteration.txt` last.

    <run>/global_step_N/training/       student, teacher, optimizer (trainer.workers.state)
    <run>/global_step_N/huggingface/    weights for from_pretrained
    <run>/global_step_N/trainer.json    step, model, data and settings, tallies
    <run>/global_step_N/manifest.json   name and size of every file

A folder whose files do not match its manifest is not whole (a copy that broke off, a full disk): the last whole one
is used instead, and it is said.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import config as config_module
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.files import set_aside, write_text

LATEST = "latest_checkpointed_iteration.txt"
PREFIX = "global_step_"
FULL = 1 << 20  # free bytes below which a disk is called full


class SaveError(Exception):
    """A checkpoint could not be written. What was there before is untouched."""


class Checkpoints:
    """The checkpoints of one run; at most `keep` are kept."""

    def __init__(self, folder: Path | str, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, write: Callable[[Path], None], trainer_state: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step: `write(folder)` puts the actor's part there. Raises SaveError, leaving no part behind."""
        final = self.folder / f"{PREFIX}{step}"
        partial = final.with_name(final.name + ".partial")
        state = json.dumps(trainer_state, indent=1)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write(partial)
            write_text(partial / "trainer.json", state)
            write_text(partial / "manifest.json", json.dumps(_sizes(partial), indent=1))
            if final.exists():
                shutil.rmtree(final)
            partial.rename(final)
            write_text(self.folder / LATEST, str(step))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(self.folder if self.folder.exists() else Path.cwd()).free
            whole = self.latest_whole()[0]
            raise SaveError(
                f"the checkpoint of step {step} could not be written to {self.folder} "
                f"({'the disk is full: ' if free < FULL else ''}{_last_line(error)}; {free / 1e9:.2f} GB free there). "
                + (f"{whole} is whole and stays." if whole else "There is no earlier one.")
            ) from error
        whole_ones = [folder for folder in self._all() if _step(folder) <= step and fault_in(folder) is None]
        for old in whole_ones[: -self.keep]:
            shutil.rmtree(old)
        return final

    def put_aside_after(self, step: int) -> list[Path]:
        """Rename what is there of later steps, whole or not: going on from `step` writes them anew. Return where they went."""
        return [aside for folder in self._all() if _step(folder) > step and (aside := set_aside(folder)) is not None]

    def latest_whole(self) -> tuple[Path | None, list[str]]:
        """Return the newest whole checkpoint, or None, and what was passed over on the way."""
        passed_over = []
        for folder in reversed(self._all()):
            fault = fault_in(folder)
            if fault is None:
                return folder, passed_over
            passed_over.append(f"{folder} is not whole ({fault})")
        return None, passed_over

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]
        return sorted(found, key=_step)


@dataclass(frozen=True)
class Start:
    """Where a run starts: at step 0, or after the step of a checkpoint folder with its `trainer.json`."""

    folder: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return self.state.get("step", 0)


def choose_start(config: Config, model_fingerprint: str, say: Callable[[str], None]) -> Start:
    """Find the checkpoint to go on from, by `trainer.resume_mode`; say what was passed over and what has changed.

    auto takes the newest whole checkpoint of the run, if any; disable takes none; resume_path takes the one named.
    What an earlier run left beyond that point is put aside, never written over. Raises UserError for a checkpoint of
    another model or without the teacher this run needs, and for a named one that is not whole.
    """
    trainer, checkpoints = config.trainer, Checkpoints(config.trainer.default_local_dir, config.trainer.max_actor_ckpt_to_keep)
    found: Path | None = None
    if trainer.resume_mode == "resume_path":
        found = Path(str(trainer.resume_from_path))
    elif trainer.resume_mode == "auto":
        found, passed_over = checkpoints.latest_whole()
        for line in passed_over:
            say(f"warning: {line}; " + (f"going back to {found}" if found else "starting anew"))
    if found is None:
        for folder in (trainer.default_local_dir, trainer.rollout_data_dir, trainer.validation_data_dir, trainer.log_dir):
            if (aside := set_aside(Path(folder))) is not None:
                say(f"an earlier run's {folder} is now {aside}")
        return Start()
    state = read_state(found)
    if state["model"] != model_fingerprint:
        raise UserError(
            f"{found} is a checkpoint of another model than actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}. Start anew "
            "under another name (a suffix), or with trainer.resume_mode=disable."
        )
    if has_moving_teacher(config) and not state["teacher"]:
        raise UserError(
            f"{found} was trained without an EMA teacher, which this run needs: start anew under another name (a suffix), or set "
            "actor_rollout_ref.actor.self_distillation.teacher_update_rate=0."
        )
    for aside in checkpoints.put_aside_after(state["step"]):
        say(f"what was there of a later step is now {aside}")
    say(f"resuming from {found}")
    now = json.loads(json.dumps(config_module.flat(config)))
    for key in sorted(state["config"].keys() | now.keys()):
        if (not key.startswith("trainer.") or key.startswith("trainer.total_")) and state["config"].get(key) != now.get(key):
            say(f"  with {key}={now.get(key)} instead of {state['config'].get(key)}")
    return Start(found, state)


def has_moving_teacher(config: Config) -> bool:
    """Return whether the run's teacher is an average of the student, which its checkpoints then hold."""
    actor = config.actor_rollout_ref.actor
    return actor.policy_loss.loss_mode == "sdpo" and actor.self_distillation.teacher_update_rate > 0


def read_state(folder: Path) -> dict[str, Any]:
    """Return the `trainer.json` of a whole checkpoint; raise UserError if it is not whole."""
    fault = fault_in(folder)
    if fault is not None:
        raise UserError(
            f"{folder} is not a whole checkpoint ({fault}); trainer.resume_from_path takes a .../global_step_N folder that is one."
        )
    return json.loads((folder / "trainer.json").read_text())


def fault_in(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if it is whole."""
    if not folder.is_dir():
        return "there is no such folder"
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return "it has no manifest.json"
    try:
        wanted = json.loads(manifest.read_text())
    except json.JSONDecodeError:
        return "its manifest.json is cut off"
    for name, size in wanted.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None


def model_folder(path: Path) -> Path | None:
    """Return the folder `from_pretrained` should read for a path that is, or lies in, or holds checkpoints of ours.

    Accepts a run's folder (its newest whole checkpoint), `global_step_N`, and `global_step_N/actor` as the published
    scripts write it. None if there is no model. Raises UserError for a checkpoint that is not whole.
    """
    if (path / "config.json").is_file():
        return path
    for step in (path, path.parent):
        if (step / "huggingface" / "config.json").is_file():
            if (fault := fault_in(step)) is not None:
                raise UserError(f"{step} is not a whole checkpoint ({fault}).")
            return step / "huggingface"
    newest = Checkpoints(path, keep=1).latest_whole()[0]
    return newest / "huggingface" if newest is not None else None


def main(arguments: list[str]) -> int:
    """Print what a checkpoint was validated on, for the launch scripts: files, prompt and response budget, a line each."""
    folder = model_folder(Path(arguments[0])) if Path(arguments[0]).is_dir() else None
    state = folder.parent / "trainer.json" if folder else None
    if state is None or not state.is_file():
        return 1
    config = json.loads(state.read_text())["config"]
    print(",".join(config["data.val_files"]), config["data.max_prompt_length"], config["data.max_response_length"], sep="\n")
    return 0


def step_in(path: str) -> int:
    """Return the step of the checkpoint a path lies in, 0 if it lies in none."""
    found = re.search(rf"{PREFIX}(\d+)(/|$)", path)
    return int(found[1]) if found else 0


def _step(folder: Path) -> int:
    return int(folder.name[len(PREFIX) :])


def _sizes(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}


def _last_line(error: OSError) -> str:
    return str(error).strip().splitlines()[-1]  # Ray puts the traceback before it


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
