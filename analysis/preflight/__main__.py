"""Is this run worth starting? Its first steps without training, and a page of verdict (docs/preflight.md).

    python -m analysis.preflight --config-name sdpo key=value ... [--prompts 64] [--out preflight.html]

Takes the arguments of `python -m trainer.main` and starts from exactly what that would. Writes the page and, beside it,
the same as JSON.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis import command
from analysis.rows import write_text
from trainer import config as config_module
from trainer.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser_of(__doc__, prog="python -m analysis.preflight")
    parser.add_argument("--config-name", default="sdpo", help="sdpo or baseline_grpo")
    parser.add_argument("--prompts", type=int, default=64, help="training prompts to sample, the run's first ones (default: 64)")
    parser.add_argument("--out", type=Path, default=Path("preflight.html"), help="the page; its numbers go beside it as .json")
    parser.add_argument("--in-process", action="store_true", help="one rank and the engine in this process, without Ray: starts sooner")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, as for training")
    return command.main(parser, preflight, arguments)


def preflight(options: argparse.Namespace) -> None:
    """Measure, judge, print, and write the page and its numbers. Raises UserError for what would also stop the run."""
    if options.prompts < 1:
        raise UserError(f"--prompts {options.prompts}: must be at least 1.")
    out = options.out if options.out.suffix else options.out.with_suffix(".html")
    if out.suffix == ".json" or out.is_dir():
        raise UserError(f"--out {options.out}: must be a file for the page, such as preflight.html; its numbers go beside it as .json.")
    config = config_module.load(options.config_name, options.overrides)
    out.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is told now
    if config.trainer.val_only:
        raise UserError("trainer.val_only=True: such a run trains nothing, so there is nothing to look at before it.")

    from trainer import checks  # torch and transformers take seconds: a wrong key is told before
    from trainer.display import Display

    display = Display()
    prepared = checks.prepare(config)  # before any other import: it measures this process, as the run does its own
    from analysis.preflight import page, verdicts

    # its own log folder and no sinks: the run's stay as they are
    trainer = replace(prepared.config.trainer, logger=[], log_dir=f"{config.trainer.log_dir.rstrip('/')}-preflight")
    prepared = replace(prepared, config=replace(prepared.config, trainer=trainer))
    try:
        found = examine(prepared, options.prompts, display, in_process=options.in_process)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  whatever broke, in whichever process: its own traceback is what helps
        from trainer.workers.ray_calls import explain

        raise UserError(f"{explain(error)}\nthe pre-flight broke, see above.") from None
    found["run"]["arguments"] = ["--config-name", options.config_name, *options.overrides]
    judged = verdicts.judge(found["figures"])
    found["verdicts"] = [vars(verdict) for verdict in judged]
    found["overall"] = verdicts.overall(judged)
    write_text(out, page.html(found))
    write_text(out.with_suffix(".json"), json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    page.show(found, display.console)
    display.say(f"page     {out}\nnumbers  {out.with_suffix('.json')}")


def examine(prepared: Any, prompts: int, display: Any, *, in_process: bool = False) -> dict[str, Any]:
    """Return everything there is to say of a run before it starts, as plain values; what is not defined is None.

    All of it but `time` and `memory` is a function of the run's settings, seed and weights.
    """
    from analysis.preflight import measure, teacher
    from trainer.session import started

    with started(prepared, display, in_process=in_process) as loop:
        loop.workers.sync()
        loop.check_parity()
        with display.working("sampling"):
            steps = measure.walk(loop, prompts)
        asked = None
        if loop.objective.second_model == "teacher":
            with display.working("asking the teacher"):
                asked = teacher.ask(loop, steps)
        found = measure.describe(loop, steps)
    found["teacher"] = asked
    found["figures"] |= teacher.figures(asked)
    return found


if __name__ == "__main__":
    sys.exit(main())
