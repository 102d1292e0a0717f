"""A run on disk: its settings, its dumps, and the weights that are left of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.reader import Reader, find, read_settings, weights_of
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

    def student(self, trained: int) -> Reader:
        """Return the student after so many steps, a key of `weights()`. The model the run began with is its own teacher at first,
        also where another run left an EMA teacher beside it."""
        found = find(str(self.weights()[trained]))
        return found if trained or self.checkpoint else replace(found, averaged=False)

    def broken(self) -> str:
        """Return what is wrong with the checkpoints that are not whole, in brackets; "" if there are none."""
        faults = [f"{folder.name}: {fault}" for _, folder in sorted(self._folders().items()) if (fault := fault_in(folder)) is not None]
        return f" ({', '.join(faults)})" if faults else ""

    def _folders(self) -> dict[int, Path]:
        found = ((folder.name[len(PREFIX) :], folder) for folder in self.checkpoints.glob(f"{PREFIX}*"))
        return {int(number): folder for number, folder in found if number.isdigit()}


@dataclass(frozen=True)
class Teacher:
    """Who teaches: whose weights of the reader's folder ("ema" or "student"), and in words."""

    reader: Reader
    weights: str
    what: str


def teacher_of(run: Run, student: Reader) -> Teacher:
    """Return who the run's teacher is beside a student of its own."""
    actor, initial = run.config.actor_rollout_ref.actor, run.config.actor_rollout_ref.model.path
    if student.averaged:
        return Teacher(student, weights_of(student, "ema"), "the EMA teacher of the same checkpoint")
    if actor.policy_loss.loss_mode != "sdpo":
        return Teacher(student, "student", "the same weights as the student (this run had no teacher)")
    if actor.self_distillation.teacher_update_rate == 0:
        fixed = find(run.config.actor_rollout_ref.ref.model.path or initial)
        return Teacher(fixed, "student", f"the run's fixed teacher, {fixed.path}")
    return Teacher(student, "student", "the same weights as the student (there is no average of them)")


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
    log, checkpoint = Path("logs") / run / "config.yaml", None
    if log.is_file():
        config, home, folder = _settings(read_settings(log), overrides), Path(), Path("checkpoints") / run
    elif Path(run).is_dir():
        folder = Path(run).resolve()
        checkpoint = folder if (folder / "trainer.json").is_file() else None
        newest = checkpoint or Checkpoints(folder, keep=1).latest_whole()[0]
        if newest is None:
            raise UserError(f"{run}: this folder holds no whole checkpoint (global_step_N), so it is no run's folder of checkpoints.")
        config, folder = _settings(read_state(newest)["config"], overrides), newest.parent
        home = folder.parent.parent
    else:
        known = sorted(path.parent.name for path in Path("logs").glob("*/config.yaml"))
        raise UserError(
            f"{run}: no run of this name (logs/{run}/config.yaml) and no folder of checkpoints here. "
            + (f"Runs in logs/: {', '.join(known)}." if known else "logs/ holds no run: start this where the run was started.")
        )
    # a run set aside (NAME.old-1) or copied recorded the places of the one that has its name now: what lies beside goes first
    recorded, name = config.trainer, config.trainer.experiment_name
    moved = folder.name.startswith(f"{name}.") or not log.is_file()

    def place(beside: Path, recorded: str) -> Path:
        first, second = (beside, Path(recorded)) if moved else (Path(recorded), beside)
        return (first if first.is_dir() else second).resolve()

    return Run(
        folder.name if folder.name.startswith(f"{name}.") else name,
        config,
        rollouts or place(home / "rollouts" / folder.name, recorded.rollout_data_dir),
        place(home / "validation" / folder.name, recorded.validation_data_dir),
        place(folder, recorded.default_local_dir),
        checkpoint,
    )


def _settings(recorded: dict, overrides: Sequence[str]) -> Config:
    return config_module.typed(config_module.compose_recorded(recorded, "sdpo", list(overrides)))
