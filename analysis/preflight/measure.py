"""The run's first steps at a learning rate of zero: its own prompts, seeds, engine, verifiers and updates, and nothing learnt.

With AdamW a rate of 0 leaves every weight as it is, weight decay included, and so the teacher's average; what a step
takes in time and memory, and what it logs of student and teacher, is what the run will show at its start.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from trainer import validation
from trainer.batching import Plan, make_plan
from trainer.dataset import find_file
from trainer.engines.base import Sampling
from trainer.health import health_metrics
from trainer.loop import Clock, Loop
from trainer.memory import GIB
from trainer.types import Batch, Group, Outcome
from trainer.validation import Estimate, estimate, pass_at_k
from trainer.workers.base import Report

KINDS = ("all_fail", "lone_success", "mixed", "all_pass")


@dataclass(frozen=True, eq=False)
class Step:
    """A step of the run that taught nothing: `number` counts from 1, `seconds` by phase as the run logs them."""

    number: int
    groups: Sequence[Group]
    batch: Batch
    report: Report
    seconds: dict[str, float]


def walk(loop: Loop, prompts: int) -> list[Step]:
    """Take the run's first steps until so many prompts were seen, at most one epoch of them; the last step may be a smaller one."""
    config, steps = loop.config, []
    rollout = config.actor_rollout_ref.rollout
    sampling = Sampling(config.data.max_response_length, rollout.temperature, rollout.top_p, rollout.top_k)
    left = min(prompts, loop.order.steps_per_epoch * loop.order.batch)
    while left > 0:
        clock, number = Clock(), len(steps) + 1
        chosen = [loop.train[i] for i in loop.order.batch_of(number)[:left]]
        groups = loop.sample(chosen, rollout.n, sampling, ("rollout", number), clock)
        with clock("peers"):
            batch = loop.objective.prepare(groups, loop.chat, number)
            plan = plan_of(loop, batch, len(groups))
        with clock("update"):
            report = loop.workers.update(batch, plan, 0.0) if plan.mini_batches else Report()
        with clock("sync"):
            loop.workers.sync()
        steps.append(Step(number, groups, batch, report, clock.seconds))
        left -= len(chosen)
    return steps


def plan_of(loop: Loop, batch: Batch, groups: int) -> Plan:
    """Cut a batch up as the run does."""
    actor, data = loop.config.actor_rollout_ref.actor, loop.config.data
    return make_plan(batch, groups, actor, world_size=loop.workers.world_size, max_response_length=data.max_response_length)


def describe(loop: Loop, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what the steps say of everything but the teacher under other contexts, and the figures the verdicts judge."""
    groups = [group for step in steps for group in step.groups]
    base, prompts, responses = _base(groups), _prompts(loop, groups), _responses(groups)
    health = health_metrics(groups, (), {}, loop.config.actor_rollout_ref.actor.self_distillation)
    kinds = {kind: health[f"health/groups_{kind}"] for kind in KINDS}
    memory, time = _memory(loop, steps), step_time(loop, steps)
    distilled = [len(step.report.records) / sum(len(group.rollouts) for group in step.groups) for step in steps]
    figures = {
        "all_fail": kinds["all_fail"],
        "all_pass": kinds["all_pass"],
        "lone_success": kinds["lone_success"],
        "both_verdicts": sum(len(held(group)) > 1 for group in groups) / len(groups),
        "truncated": responses["truncated"],
        "unreadable": responses["outcomes"][Outcome.FORMAT],
        "verifier_errors": responses["outcomes"][Outcome.ERROR],
        "repetition": health["health/repetition"],
        "too_long": prompts["left_out"] / (prompts["left_out"] + prompts["training"]),
        "memory_share": memory["share"],
        "memory_above_plan": memory["above_plan"],
        "verify_share": time["seconds"].get("verify", 0.0) / time["step"],
    }
    config = loop.config
    return {
        "run": {
            "experiment": config.trainer.experiment_name,
            "model": config.actor_rollout_ref.model.path,
            "loss": config.actor_rollout_ref.actor.policy_loss.loss_mode,
            "engine": config.actor_rollout_ref.rollout.name,
            "device": loop.prepared.device,
            "ranks": loop.workers.world_size,
            "seed": config.data.seed,
            "prompts": len(groups),
            "n": config.actor_rollout_ref.rollout.n,
            "notices": list(loop.prepared.notices),
        },
        "base": base,
        "groups": kinds,
        "distilled": float(np.average(distilled, weights=[len(step.groups) for step in steps])),
        "prompts": prompts,
        "responses": responses,
        "signal": _signal(steps, loop.objective.second_model == "teacher"),
        "memory": memory,
        "time": time,
        "figures": figures,
    }


def held(group: Group) -> set[bool]:
    """Return which of pass and fail a group holds; where the verifier failed there is neither."""
    return {verdict.outcome == Outcome.PASS for verdict in group.verdicts if verdict.outcome != Outcome.ERROR}


def _base(groups: Sequence[Group]) -> dict[str, Any]:
    """Return mean@n and pass@n over all prompts and by source, `[value, low, high]` each."""
    n = len(groups[0].verdicts)
    acc = np.array([[verdict.acc for verdict in group.verdicts] for group in groups])
    passed = np.array([sum(verdict.outcome == Outcome.PASS for verdict in group.verdicts) for group in groups])
    named = (f"acc/mean@{n}", f"acc/pass@{n}")
    sources = {source: {name[4:]: interval(found[name]) for name in named} for source, found in validation.per_source(groups).items()}
    return {
        "n": n,
        f"mean@{n}": interval(estimate(acc.mean(1))),
        f"pass@{n}": interval(estimate(pass_at_k(passed, n, n))),
        "sources": sources,
    }


def interval(found: Estimate) -> list[float | None]:
    """Return an estimate as [value, low, high]."""
    return [found.value, found.low, found.high]


def _prompts(loop: Loop, groups: Sequence[Group]) -> dict[str, Any]:
    """Return how many training prompts there are, how many were left out as too long (nothing else is), and their lengths."""
    files = [find_file(file, "train", "data.train_files") for file in loop.config.data.train_files]
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    lengths = [len(prompt.token_ids) for prompt in loop.train]
    return {
        "training": len(loop.train),
        "left_out": rows - len(loop.train),
        "most_tokens": loop.config.data.max_prompt_length,
        "tokens": _spread(lengths),
    }


def _responses(groups: Sequence[Group]) -> dict[str, Any]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    outcomes = [verdict.outcome for group in groups for verdict in group.verdicts]
    return {
        "tokens": _spread([len(rollout.token_ids) for rollout in rollouts]),
        "truncated": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
        "outcomes": {str(outcome): outcomes.count(outcome) / len(outcomes) for outcome in Outcome},
    }


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "p95": float(np.quantile(lengths, 0.95)),
        "max": max(lengths),
    }


def _signal(steps: Sequence[Step], taught: bool) -> dict[str, Any] | None:
    """Return how far the teacher is from the student under the run's own contexts, per token, with intervals over prompts."""
    out: dict[str, Any] = {}
    if not taught:
        return None
    for name, record in (("gap", "teacher_gap"), ("divergence", "divergence")):
        by_prompt: dict[str, list[np.ndarray]] = {}
        for step in steps:
            for i, records in step.report.records.items():
                by_prompt.setdefault(step.batch.samples[i].uid, []).append(records[record])
        means = np.array([np.concatenate(values).mean() for values in by_prompt.values()])
        out[name] = interval(estimate(means)) if len(means) else None
        out["prompts"] = len(means)
    return out


def _memory(loop: Loop, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what a rank is predicted to need and what it took here, in GiB; `share` is of what is there."""
    plan, measured = loop.prepared.memory, max(step.report.peak_bytes for step in steps)
    expected = None if plan is None else plan.expected
    return {
        "predicted": None if plan is None else plan.worst.total / GIB,
        "phase": None if plan is None else plan.worst.name,
        "there": None if plan is None or plan.there is None else plan.there / GIB,
        "share": None if plan is None or plan.there is None else plan.worst.total / plan.there,
        "expected": None if expected is None else expected / GIB,
        "measured": measured / GIB if measured else None,
        "above_plan": measured / expected - 1 if measured and expected else None,
    }


def step_time(loop: Loop, steps: Sequence[Step]) -> dict[str, Any]:
    """Return the seconds of a step, by phase and in all, and the hours of the run's steps.

    Medians over the whole steps but the first, in which everything is done for the first time: a step that the machine
    held up says nothing of the others. If not even one step was whole it is scaled up by prompts, which says too much: a
    larger batch is sampled faster than in proportion.
    """
    batch = loop.order.batch
    whole = [step for step in steps if len(step.groups) == batch]
    used = whole[1:] or whole or steps
    scale = batch / float(np.mean([len(step.groups) for step in used]))

    def of_a_step(measured: Sequence[dict[str, float]]) -> dict[str, float]:
        phases = dict.fromkeys(name for seconds in measured for name in seconds)
        return {name: scale * float(np.median([seconds.get(name, 0.0) for seconds in measured])) for name in phases}

    seconds, within = of_a_step([step.seconds for step in used]), of_a_step([step.report.seconds for step in used])
    sampling, training = (sum(seconds.get(name, 0.0) for name in names) for names in (("rollout", "verify"), ("peers", "update")))
    ahead = loop.config.trainer.rollout_overlap
    step = (max(sampling, training) if ahead else sampling + training) + seconds["sync"]
    total = loop.total_steps
    return {
        "step": step,
        "seconds": seconds,
        "update": within,
        "steps_measured": len(used),
        "scaled_by": scale,
        "total_steps": total,
        "hours": step * total / 3600,
        "overlap": ahead,
    }
