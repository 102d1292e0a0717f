"""A run on disk: its settings, its dumps, and the weights that are left of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.reader import read_settings
from trainer import config as config_module
from trainer.checkpoint import PREFIX, Checkpoints, fault_in, read_state
from trainer.config.schema import Config
from trainer.errors import UserError


@dataclass(frozen=True)
class Run:
    """`rollouts` and `validation` hold STEP.jsonl, `checkpoints` global_step_N; `checkpoint` is the one named outright, if any."""

    name: str
    config: Config
    rollouts: Path
    validation: Path
    checkpoints: Path
    checkpoint: Path | None = None

    def weights(self) -> dict[int, Path]:
        """Return the folders of the weights there are by the steps trained: whole checkpoints; 0: the model it began with, if
        that lies on this disk. A checkpoint named outright is the only one."""
        if self.checkpoint is not None:
            return {read_state(self.checkpoint)["step"]: self.checkpoint}
        initial = Path(self.config.actor_rollout_ref.model.path)
        first = {0: initial} if (initial / "config.json").is_file() else {}
        return first | {number: folder for number, folder in sorted(self._folders().items()) if fault_in(folder) is None}

    def broken(self) -> str:
        """Return what is wrong with the checkpoints that are not whole, in brackets; "" if there are none."""
        faults = [f"{folder.name}: {fault}" for _, folder in sorted(self._folders().items()) if (fault := fault_in(folder)) is not None]
        return f" ({', '.join(faults)})" if faults else ""

    def _folders(self) -> dict[int, Path]:
        found = ((folder.name[len(PREFIX) :], folder) for folder in self.checkpoints.glob(f"{PREFIX}*"))
        return {int(number): folder for number, folder in found if number.isdigit()}


def dumped(folder: Path) -> list[int]:
    """Return the steps whose dumps (STEP.jsonl) lie in a folder."""
    return sorted(int(file.stem) for file in folder.glob("*.jsonl") if file.stem.isdigit())


def ranges(steps: Sequence[int]) -> str:
    """Return 1, 2, 3, 7 as "1-3, 7"."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def find_run(run: str, overrides: Sequence[str] = (), rollouts: Path | None = None) -> Run:
    """Return the run of a name (logs/NAME/config.yaml) or of a folder of checkpoints (its trainer.json).

    Args:
        overrides: settings that win over the run's own, as for training.
        rollouts: where its dumps of training are, if no longer where the settings say.

    Raises UserError if there is no such run, naming those that are there.
    """
    log = Path("logs") / run / "config.yaml"
    if log.is_file():
        config = _settings(read_settings(log), overrides)
        beside = [Path(name) / run for name in ("rollouts", "validation", "checkpoints")]
        checkpoint = None
    elif Path(run).is_dir():
        folder = Path(run).resolve()
        checkpoint = folder if (folder / "trainer.json").is_file() else None
        newest = checkpoint or Checkpoints(folder, keep=1).latest_whole()[0]
        if newest is None:
            raise UserError(f"{run}: this folder holds no whole checkpoint (global_step_N), so it is no run's folder of checkpoints.")
        config = _settings(read_state(newest)["config"], overrides)
        home, name = newest.parent.parent.parent, newest.parent.name
        beside = [home / "rollouts" / name, home / "validation" / name, newest.parent]
    else:
        known = sorted(path.parent.name for path in Path("logs").glob("*/config.yaml"))
        raise UserError(
            f"{run}: no run of this name (logs/{run}/config.yaml) and no folder of checkpoints here. "
            + (f"Runs in logs/: {', '.join(known)}." if known else "logs/ holds no run: start this where the run was started.")
        )
    held = (Path(path) for path in (config.trainer.rollout_data_dir, config.trainer.validation_data_dir, config.trainer.default_local_dir))
    of_training, of_validation, checkpoints = (path if path.is_dir() else other for path, other in zip(held, beside, strict=True))
    return Run(
        config.trainer.experiment_name,
        config,
        rollouts or of_training,
        of_validation,
        checkpoints if checkpoint is None else checkpoint.parent,
        checkpoint,
    )


def _settings(recorded: dict, overrides: Sequence[str]) -> Config:
    return config_module.typed(config_module.compose_recorded(recorded, "sdpo", list(overrides)))
