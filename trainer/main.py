"""Entry point: python -m trainer.main --config-name sdpo key=value ...

Exit codes: 0 done, 1 a run that broke (resumable), 2 something for the user to mend, 130 interrupted and saved.
"""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import config as config_module
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.files import held

if TYPE_CHECKING:
    from trainer.checkpoint import Start
    from trainer.checks import Prepared
    from trainer.display import Display
    from trainer.loop import Loop


# where this call was told to start is not where its saved work goes on
HOW_TO_RESUME = re.compile(r"\s\+{0,2}trainer\.resume_(mode|from_path)=(\\.|'[^']*'|[^\s\\])*")

SAVING = "stopping: saving what is done (once more to stop at once)"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.main", description="Train, or validate, one run.")
    parser.add_argument("--config-name", default="sdpo", help="sdpo or baseline_grpo")
    parser.add_argument("--cfg", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides")
    options = parser.parse_intermixed_args(arguments)
    command = f"python -m trainer.main --config-name {options.config_name} {shlex.join(options.overrides)}"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: in order
    try:
        config = config_module.load(options.config_name, options.overrides)
        if options.cfg:
            print(config_module.to_yaml(config), end="")
            return 0
        return run(config, HOW_TO_RESUME.sub("", os.environ.get("MOPD_COMMAND", command)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing is lost that was saved", file=sys.stderr)
        return 130


def run(config: Config, command: str) -> int:
    """Check everything, then train or validate. `command` is what starts this run again."""
    from trainer import checks
    from trainer.display import Display

    display = Display()
    if config.trainer.val_only:
        config = _with_weights_to_validate(config, display)
    prepared = checks.prepare(config)
    for notice in prepared.notices:
        display.say(f"notice: {notice}")
    if config.trainer.dry_run:
        from trainer.dry_run import report

        report(prepared, display)
        return 0
    if config.trainer.val_only:
        return _guarded(lambda: _validate(prepared, display), None)
    folder = Path(config.trainer.default_local_dir)
    with held(folder.with_name(f".{folder.name}.lock"), f"the run {config.trainer.experiment_name!r}"):
        return _train_or_show(prepared, display, command)


def _train_or_show(prepared: "Prepared", display: "Display", command: str) -> int:
    """Train from where the run stands; if it is complete say so and show its results."""
    from trainer.checkpoint import choose_start
    from trainer.loop import validation_due

    config = prepared.config
    start = choose_start(config, prepared.model_fingerprint, display.say)
    last = start.state.get("last_validation")
    if start.step >= prepared.total_steps and not validation_due(config, start.step, prepared.total_steps, last):
        display.say(
            f"this run is complete: {start.step} steps of {prepared.total_steps} asked for. To train further raise "
            "trainer.total_training_steps or total_epochs; to start anew take another suffix, or trainer.resume_mode=disable."
        )
        _results(display, start.state["first_validation"], last)
        _say_where(config, display)
        return 0
    return _guarded(lambda: _train(prepared, start, display, command), command)


def _guarded(work: Callable[[], int], command: str | None) -> int:
    """Do the work; when a worker or a library breaks, show its own traceback and the command to go on with, and return 1."""
    from trainer.checkpoint import SaveError
    from trainer.workers.ray_calls import explain

    try:
        return work()
    except (UserError, SaveError) as error:
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001  whatever broke: the run ends here, in order
        print(f"{explain(error)}\nerror: the run broke, see above.", file=sys.stderr)
    if command is not None:
        print(f"resume: {command}", file=sys.stderr)
    return 1


def _train(prepared: "Prepared", start: "Start", display: "Display", command: str) -> int:
    from trainer.loop import Interrupted
    from trainer.session import started

    with started(prepared, display, resume_step=start.step if start.folder else None) as loop:
        if start.folder is not None:
            loop.restore(start.folder, start.state)
        try:
            with _stopping_signals(loop), display.live(loop.step, loop.total_steps):
                loop.run()
        except Interrupted:
            display.say(f"interrupted: step {loop.step} of {loop.total_steps} is done")
            if loop.step > start.step:
                display.say(f"saved {loop.save()}")
            display.say(f"resume: {command}")
            return 130
    _results(display, loop.first_validation, loop.last_validation)
    _say_where(prepared.config, display)
    return 0


def _validate(prepared: "Prepared", display: "Display") -> int:
    from trainer.checkpoint import step_in
    from trainer.loop import Interrupted
    from trainer.session import started

    path = prepared.config.actor_rollout_ref.model.path
    with started(prepared, display) as loop, _stopping_signals(loop, "stopping"):
        loop.step = step_in(path)
        loop.workers.sync()
        try:
            display.say(path)
            display.table("validation", {f"step {loop.step}" if loop.step else "model": loop.validate()})
        except Interrupted:
            raise KeyboardInterrupt from None
    _say_where(prepared.config, display)
    return 0


@contextmanager
def _stopping_signals(loop: "Loop", says: str = SAVING) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop at the next safe point; the second one stops at once."""

    def ask(signum: int, frame: object) -> None:
        if loop.stop_requested:
            raise KeyboardInterrupt
        loop.stop_requested = True
        loop.display.say(says)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_weights_to_validate(config: Config, display: "Display") -> Config:
    """Point the model path of a validation at weights: a checkpoint of ours has them in its huggingface/ folder."""
    from trainer.checkpoint import model_folder

    trainer, given = config.trainer, config.trainer.resume_from_path
    own = Path(trainer.default_local_dir)
    path = given or (own if trainer.resume_mode == "auto" and model_folder(own) else config.actor_rollout_ref.model.path)
    folder = model_folder(Path(path)) if Path(path).is_dir() else None
    if folder is None:
        if given or Path(path).is_dir():
            raise UserError(f"{path}: no model folder and no whole checkpoint of ours to validate.")
        return config
    if str(folder) != path:
        display.say(f"validating {folder}")
    model = replace(config.actor_rollout_ref.model, path=str(folder))
    return replace(config, actor_rollout_ref=replace(config.actor_rollout_ref, model=model))


def _results(display: "Display", first: dict | None, last: dict | None) -> None:
    if first is not None and last is not None and first["step"] != last["step"]:
        display.table("before and after", {f"step {first['step']}": first, f"step {last['step']}": last})
    elif last is not None:
        display.table("validation", {f"step {last['step']}": last})


def _say_where(config: Config, display: "Display") -> None:
    trainer = config.trainer
    if not trainer.val_only:
        display.say(f"checkpoints  {trainer.default_local_dir}\nrollouts     {trainer.rollout_data_dir}")
    display.say(f"validation   {trainer.validation_data_dir}\nlogs         {trainer.log_dir} (metrics.jsonl, config.yaml)")


if __name__ == "__main__":
    sys.exit(main())
