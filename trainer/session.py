"""A loop with everything around it started, and ended whatever happens."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from trainer import objectives
from trainer.checks import Prepared
from trainer.display import Display
from trainer.loop import Loop
from trainer.rewards.pool import VerifierPool
from trainer.tracking import Tracker
from trainer.workers.base import Workers


@contextmanager
def started(prepared: Prepared, display: Display, *, resume_step: int | None = None, in_process: bool = False) -> Iterator[Loop]:
    """Start workers, verifiers and tracking around a loop.

    `in_process` runs one rank and the engine in this process, without Ray (tests, benchmarks, experiments).
    `resume_step` is the step of the checkpoint a run goes on from; metrics logged after it are dropped.
    """
    config, custom = prepared.config, prepared.config.custom_reward_function
    display.say(
        f"{config.trainer.experiment_name}: {len(prepared.train)} training and {len(prepared.val)} validation prompts; starting "
        f"{config.trainer.world_size} rank(s) and the {config.actor_rollout_ref.rollout.name} engine on {prepared.device}"
    )
    with ExitStack() as ends:
        if in_process and prepared.memory is not None:
            prepared = replace(prepared, memory=prepared.memory.in_process())
        workers = _workers(prepared, in_process)
        ends.callback(workers.close)
        verifiers = VerifierPool(
            config.reward.num_workers,
            timeout=config.reward.timeout,
            options=config.reward.options(),
            custom=(custom.path, custom.name) if custom.path else None,
        )
        ends.callback(verifiers.close)
        tracker = Tracker(config, resume_step=resume_step)
        ends.callback(tracker.close)
        yield Loop(prepared, objective=objectives.build(config), workers=workers, verifiers=verifiers, tracker=tracker, display=display)


def _workers(prepared: Prepared, in_process: bool) -> Workers:
    if in_process:
        from trainer.workers.local import LocalWorkers

        return LocalWorkers(prepared.config, prepared.device)
    from trainer.workers.ray_workers import RayWorkers

    return RayWorkers(prepared.config, prepared.device, trains=not prepared.config.trainer.val_only)
