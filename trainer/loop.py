"""The training loop. `train_step` is one step of the method from top to bottom:

    prompts -> rollouts -> verdicts -> groups -> peer contexts -> plan -> update on all ranks -> weights to the engines

It runs on the driver and knows neither Ray nor FSDP: `Workers` sample and train, everything between is pure.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trainer import config as config_module
from trainer import metrics as m
from trainer import validation
from trainer.batching import make_plan
from trainer.checkpoint import Checkpoints, SaveError, has_moving_teacher
from trainer.checks import Prepared
from trainer.config.schema import Config
from trainer.display import Display
from trainer.dumps import write_rollouts
from trainer.engines.base import Response, Sampling
from trainer.errors import UserError
from trainer.files import set_aside, write_text
from trainer.health import Monitor, health_metrics
from trainer.objectives.base import Objective
from trainer.rewards.pool import VerifierPool
from trainer.schedule import learning_rate
from trainer.seeds import derive
from trainer.tracking import Tracker
from trainer.types import Batch, Group, Outcome, Prompt, Rollout, Verdict
from trainer.workers.base import Report, Workers


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; the state is that of the last finished step."""


class Loop:
    """Holds a run together. `step` is the number of finished training steps."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        objective: Objective,
        workers: Workers,
        verifiers: VerifierPool,
        tracker: Tracker,
        display: Display,
    ) -> None:
        self.config, self.chat, self.train, self.val = prepared.config, prepared.chat, prepared.train, prepared.val
        self.prepared, self.objective, self.workers = prepared, objective, workers
        self.verifiers, self.tracker, self.display = verifiers, tracker, display
        self.checkpoints = Checkpoints(self.config.trainer.default_local_dir, self.config.trainer.max_actor_ckpt_to_keep)
        self.step = 0
        self.first_validation: dict[str, Any] | None = None
        self.last_validation: dict[str, Any] | None = None
        self.seen, self.monitor = m.Seen(), Monitor()
        self.nonfinite_in_a_row = 0
        self.stop_requested = False
        self.told: set[str] = set()
        if self.train:
            self.order, self.total_steps = prepared.order, prepared.total_steps

    def run(self) -> None:
        """Train from the current step to the last, validating and saving on the way."""
        trainer = self.config.trainer
        self.workers.sync()
        if validation_due(self.config, self.step, self.total_steps, self.last_validation):  # at step 0, or interrupted there
            self.validate()
        saved = self.step
        while self.step < self.total_steps:
            if self.stop_requested:
                raise Interrupted
            self.train_step()
            last = self.step == self.total_steps
            if validation_due(self.config, self.step, self.total_steps, self.last_validation):
                self.validate()
            if trainer.save_freq and (last or self.step % trainer.save_freq == 0):
                saved = self._save_or_warn(saved, last)

    def train_step(self) -> dict[str, float]:
        """Run one training step and log it."""
        config, clock, step = self.config, Clock(), self.step + 1
        rollout = config.actor_rollout_ref.rollout
        prompts = [self.train[i] for i in self.order.batch_of(step)]
        sampling = Sampling(config.data.max_response_length, rollout.temperature, rollout.top_p, rollout.top_k)

        groups = self.sample(prompts, rollout.n, sampling, ("rollout", step), clock)
        with clock("peers"):
            batch = self.objective.prepare(groups, self.chat, step)
            plan = make_plan(
                batch,
                len(groups),
                config.actor_rollout_ref.actor,
                world_size=self.workers.world_size,
                max_response_length=config.data.max_response_length,
            )
        rate = learning_rate(config.actor_rollout_ref.actor.optim, step, self.total_steps)
        with clock("update"):
            report = self.workers.update(batch, plan, rate) if plan.mini_batches else Report()
        self._check_finite(report, batch, step)
        with clock("sync"):
            self.workers.sync()
        self.step = step

        write_rollouts(Path(config.trainer.rollout_data_dir) / f"{step}.jsonl", groups, self.chat, step, batch.contexts)
        metrics = self._metrics(groups, batch, report, rate, clock)
        self.tracker.log(metrics, step)
        self.display.step(step, self.total_steps, metrics)
        for warning in self.monitor.check(metrics):
            self.display.warn(f"step {step}: {warning}")
        return metrics

    def sample(self, prompts: Sequence[Prompt], n: int, sampling: Sampling, purpose: tuple[str, int], clock: "Clock") -> list[Group]:
        """Sample n rollouts of each prompt and judge them as they finish."""
        seeds = [[derive(self.config.data.seed, *purpose, prompt.uid, i) for i in range(n)] for prompt in prompts]
        rollouts: dict[tuple[int, int], Rollout] = {}
        verdicts: dict[tuple[int, int], Future[Verdict]] = {}
        with clock("rollout"):
            for responses in self.workers.generate([prompt.token_ids for prompt in prompts], seeds, sampling):
                for response in responses:
                    where = response.prompt, response.sample
                    rollouts[where] = self._rollout(response)
                    verdicts[where] = self._judge(prompts[response.prompt], rollouts[where])
                if self.stop_requested:
                    raise Interrupted
        with clock("verify"):
            judged = {where: verdict.result() for where, verdict in verdicts.items()}
        self._tell_errors(judged.values())
        return [Group(prompt, [rollouts[p, i] for i in range(n)], [judged[p, i] for i in range(n)]) for p, prompt in enumerate(prompts)]

    def validate(self) -> dict[str, Any]:
        """Sample `val_kwargs.n` responses to each validation prompt, log and dump them, and return the estimates.

        The seeds do not depend on the step: before and after are compared on common random numbers.
        """
        kwargs, clock = self.config.actor_rollout_ref.rollout.val_kwargs, Clock()
        sampling = Sampling(
            self.config.data.max_response_length, kwargs.temperature, kwargs.top_p, kwargs.top_k, greedy=not kwargs.do_sample
        )
        with self.display.working(f"validating on {len(self.val)} prompts x {kwargs.n}"):
            groups = self.sample(self.val, kwargs.n, sampling, ("validation", 0), clock)
        dump = Path(self.config.trainer.validation_data_dir) / f"{self.step}.jsonl"
        if self.config.trainer.val_only:
            set_aside(dump)
        write_rollouts(dump, groups, self.chat, self.step)
        estimates = validation.per_source(groups)
        self.tracker.log({**validation.metrics(estimates), "timing_s/validation": clock.total}, self.step)
        sources = {source: {name: asdict(e) for name, e in values.items()} for source, values in estimates.items()}
        self.last_validation = {"step": self.step, "n": kwargs.n, "sources": sources}
        self.first_validation = self.first_validation or self.last_validation
        self.display.validation(self.step, self.last_validation)
        return self.last_validation

    def save(self) -> Path:
        """Write a checkpoint of the current step. Raises SaveError."""
        state = {
            "step": self.step,
            "model": self.prepared.model_fingerprint,
            "teacher": has_moving_teacher(self.config),
            "data": self.order.fingerprint(self.train),
            "config": config_module.flat(self.config),
            "seen": self.seen.state(),
            "monitor": self.monitor.state(),
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "first_validation": self.first_validation,
            "last_validation": self.last_validation,
        }
        with self.display.working(f"saving step {self.step}"):
            return self.checkpoints.save(self.step, self.workers.save, state)

    def restore(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: `state` is its trainer.json."""
        if state["data"] != self.order.fingerprint(self.train):
            self.display.warn(
                f"the training prompts or their order are not those of {folder}: step {state['step'] + 1} goes on with what is there now"
            )
        self.workers.load(folder)
        self.step = state["step"]
        self.seen = m.Seen(**state["seen"])
        self.monitor.restore(state["monitor"])
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        self.first_validation, self.last_validation = state["first_validation"], state["last_validation"]

    def _tell_errors(self, verdicts: Iterable[Verdict]) -> None:
        """Warn of every new way in which the verifier itself failed."""
        errors = [verdict.details.get("error", "no reason given") for verdict in verdicts if verdict.outcome == Outcome.ERROR]
        for error in dict.fromkeys(errors):
            if error not in self.told:
                self.told.add(error)
                self.display.warn(
                    f"the verifier failed on {errors.count(error)} rollouts, which count as neither success nor failure: {error}"
                )

    def _rollout(self, response: Response) -> Rollout:
        return Rollout(self.chat.decode(response.token_ids), response.token_ids, response.sampler_logp, response.finished)

    def _judge(self, prompt: Prompt, rollout: Rollout) -> "Future[Verdict]":
        info = {**prompt.extra_info, "truncated": not rollout.finished}
        return self.verifiers.submit(prompt.data_source, rollout.text, prompt.ground_truth, info)

    def _metrics(self, groups: list[Group], batch: Batch, report: Report, rate: float, clock: "Clock") -> dict[str, float]:
        distill = self.config.actor_rollout_ref.actor.self_distillation
        tokens = sum(len(r.token_ids) for group in groups for r in group.rollouts)
        out = {
            "training/global_step": self.step,
            "training/epoch": (self.step - 1) // self.order.steps_per_epoch,
            **m.rollout_metrics(groups),
            **batch.metrics,
            **m.update_metrics(batch.samples, report.records, self.objective.token_metrics),
            **health_metrics(groups, batch.samples, report.records, distill),
            **self.seen.update(groups, distill.success_reward_threshold),
            "actor/lr": rate,
            "actor/skipped_steps": report.skipped,
            **{f"timing_s/{name}": seconds for name, seconds in {**clock.seconds, **report.seconds}.items()},
            "timing_s/step": clock.total,
            "perf/throughput": tokens / clock.total,
        }
        if report.losses:
            out |= {"actor/pg_loss": float(np.mean(report.losses)), "actor/grad_norm": float(np.mean(report.grad_norms))}
        return out

    def _check_finite(self, report: Report, batch: Batch, step: int) -> None:
        """Dump a batch whose loss or gradient was not finite, name its prompts, and stop the run when it goes on."""
        if not report.skipped:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        bad = [i for i, record in report.records.items() if not all(np.isfinite(value).all() for value in record.values())]
        file = Path(self.config.trainer.log_dir) / "nonfinite" / f"{step}.json"
        rows = [{name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in vars(s).items()} for s in batch.samples]
        write_text(file, json.dumps({"step": step, "bad": bad, "losses": report.losses, "grad_norms": report.grad_norms, "samples": rows}))
        named = ", ".join(sorted({batch.samples[i].uid for i in bad})) or "no single prompt (only the gradient norm is not finite)"
        text = (
            f"step {step}: loss {report.losses}, gradient norm {report.grad_norms}: the update was left out. "
            f"Prompts: {named}. Batch: {file}"
        )
        if self.nonfinite_in_a_row >= self.config.trainer.max_nonfinite_steps:
            raise UserError(
                f"{text}. That is {self.nonfinite_in_a_row} steps in a row (trainer.max_nonfinite_steps): "
                "lower the learning rate or look at the batch."
            )
        self.display.warn(text)

    def _save_or_warn(self, saved: int, last: bool) -> int:
        """Save; on failure go on training with what was saved before, unless there is no later chance."""
        try:
            self.save()
        except SaveError as error:
            if last:
                raise
            self.display.warn(f"{error} Training goes on; the next attempt is at the next save.")
            return saved
        return self.step


def validation_due(config: Config, step: int, total_steps: int, last: Mapping[str, Any] | None) -> bool:
    """Return whether a run that has finished `step` steps, and validated last as `last` says, should validate now."""
    trainer = config.trainer
    if not config.data.val_files or (last is not None and last["step"] == step):
        return False
    if step == 0:
        return trainer.val_before_train
    return bool(trainer.test_freq) and (step == total_steps or step % trainer.test_freq == 0)


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.start, self.seconds = time.perf_counter(), dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the block to phase `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        return time.perf_counter() - self.start
