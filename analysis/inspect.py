"""The teacher's view of a step: one HTML page with every rollout's tokens coloured by what the teacher thinks of them.

    python -m analysis.inspect NAME --step 20

NAME is a run's name (logs/NAME, rollouts/NAME and checkpoints/NAME are there) or its folder of checkpoints, or one
checkpoint in it. Pick a prompt and a rollout; switch each peer that its teacher was shown on and off; see what student and
teacher expected at every token. The page needs no network and no server. Weights are those of the checkpoint nearest to the
step (it says which), the teacher is the run's. docs/teacher_signal.md explains the page.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import time

import torch

from analysis import command, runs, view
from analysis.page import Page
from analysis.scoring import load_lm
from data.writing import shown
from trainer import models
from trainer.errors import UserError
from trainer.files import write_text


def inspect(options: argparse.Namespace) -> Path:
    """Score a step and write its page; return where it is."""
    start = time.monotonic()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # a folder that cannot be is told now
    run = runs.find_run(options.run, options.set, options.rollouts)
    weights = view.find_weights(run, options.step, options.model, options.teacher_model)
    config = run.config
    trust, template = config.actor_rollout_ref.model.trust_remote_code, config.data.apply_chat_template_kwargs
    command.resolve_device(options)
    dtype = getattr(torch, options.dtype)
    chat = models.load_chat(weights.student.path, template, trust_remote_code=trust)
    if weights.teacher.path != weights.student.path:
        configs = [models.resolve(w.path, "--teacher-model", trust_remote_code=trust) for w in (weights.student, weights.teacher)]
        models.check_same_vocabulary(chat, models.load_chat(weights.teacher.path, template, trust_remote_code=trust), *configs)
    step = view.read_step(run, options.step, chat, options.prompts)

    temperature, distill = config.actor_rollout_ref.rollout.temperature, config.actor_rollout_ref.actor.self_distillation
    top = min(options.top, len(chat.tokenizer))
    look = {"top": top, "temperature": temperature, "device": options.device, "max_tokens": options.max_tokens}
    rollouts = sum(len(group.rollouts) for group in step.groups)
    notes = (*weights.notes, *step.notes)
    print(f"{run.name}, step {step.number}: {len(step.groups)} prompts, {rollouts} rollouts", *notes, sep="\n  ")
    total = len(step.groups)
    looker = view.Looker(load_lm(weights.student, "student", dtype=dtype), **look)
    students = list(shown(view.student_views(step, looker), "student", total=total))
    del looker  # one model at a time
    looker = view.Looker(load_lm(weights.teacher, weights.of_teacher, dtype=dtype), **look)
    page = Page(
        f"{run.name}, step {step.number}",
        step=step.number,
        temperature=temperature,
        top=top,
        threshold=distill.success_reward_threshold,
        notes=notes,
    )
    scored = view.views(step, students, looker, chat, run)
    for group, of_group in zip(step.groups, shown(scored, "teacher", total=total), strict=True):
        page.add(group, of_group)
    out = options.out or Path(f"inspect-{run.name}-{step.number}.html")
    try:
        write_text(out, page.html(chat))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error}).") from None
    size = out.stat().st_size
    print(f"{out}: {size / 1e6:.1f} MB in {time.monotonic() - start:.1f} s; open it in a browser (? shows the keys)")
    return out


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's name, its folder of checkpoints, or one global_step_N of it")
    parser.add_argument("--step", type=command.positive, required=True, help="the step whose rollouts are shown")
    parser.add_argument("--prompts", type=command.positive, help="show the first so many prompts of the step (default: all)")
    parser.add_argument("--out", type=Path, help="the page (default: inspect-NAME-STEP.html here)")
    parser.add_argument(
        "--top", type=command.positive, default=5, help="likeliest words kept of student and teacher at each token (default: 5)"
    )
    parser.add_argument("--model", help="score with this student: a folder, a hub name, or a checkpoint of ours with its EMA teacher")
    parser.add_argument("--teacher-model", help="score with this teacher instead of the run's")
    parser.add_argument("--rollouts", type=Path, help="where the dumps (STEP.jsonl) are, if not where the run wrote them")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the run that were others at that step")
    parser.add_argument("--max-tokens", type=command.positive, default=16384, help="tokens of one forward pass (default: 16384)")
    command.add_device(parser)
    return command.main(parser, inspect, arguments)


if __name__ == "__main__":
    sys.exit(main())
