"""The training loop. `train_step` is one step of the method from top to bottom:

    prompts -> rollouts -> verdicts -> groups -> peer contexts -> plan -> update on all ranks -> weights to the engines

It runs on the driver and knows neither Ray nor FSDP: `Workers` sample and train, everything between is pure.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import config as config_module
from trainer import metrics as m
from trainer import validation
from trainer.batching import Plan, make_plan
from trainer.chat import Chat
from trainer.checkpoint import Checkpoints, SaveError, has_moving_teacher
from trainer.checks import Prepared
from trainer.config.schema import Config
from trainer.display import Display
from trainer.dumps import write_rollouts
from trainer.engines.base import Response, Sampling
from trainer.errors import UserError
from trainer.files import set_aside, write_text
from trainer.health import Monitor, health_metrics
from trainer.memory import GIB
from trainer.objectives.base import Objective
from trainer.rewards.pool import VerifierPool
from trainer.schedule import learning_rate
from trainer.seeds import derive
from trainer.teacher_signal import teacher_metrics
from trainer.tracking import Tracker
from trainer.types import Batch, Group, Outcome, Prompt, Rollout, Sample, Verdict
from trainer.workers.base import Report, Workers
from trainer.workers.setup import compute_dtype

PARITY_PROMPTS, PARITY_TOKENS = 8, 64  # what student and sampler are compared on before the first step
AHEAD = "ahead.json"  # in a checkpoint: the next step's rollouts, where they are sampled a step ahead


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
        self.once: dict[str, float] = {}  # metrics of the start, logged with the first step
        self.ahead: Future[Sampled] | None = None  # the next step's rollouts, with trainer.rollout_overlap
        self.leaving = False  # `run` ends: what is being sampled ahead ends as well
        if self.train:
            self.order, self.total_steps = prepared.order, prepared.total_steps

    def run(self) -> None:
        """Train from the current step to the last, validating and saving on the way."""
        trainer = self.config.trainer
        self.workers.sync()
        if self.step < self.total_steps:
            self.check_parity()
        if validation_due(self.config, self.step, self.total_steps, self.last_validation):  # at step 0, or interrupted there
            self.validate()
        saved, self.leaving, self.background = self.step, False, ThreadPoolExecutor(1)
        try:
            while self.step < self.total_steps:
                if self.stop_requested:
                    raise Interrupted
                self.train_step()
                last = self.step == self.total_steps
                if validation_due(self.config, self.step, self.total_steps, self.last_validation):
                    self.validate()
                if trainer.save_freq and (last or self.step % trainer.save_freq == 0):
                    saved = self._save_or_warn(saved, last)
        finally:
            self.leaving = True
            self.background.shutdown()

    def check_parity(self) -> None:
        """Let the engine sample a few responses and the student score them. Raises UserError if they are not the same model."""
        rollout = self.config.actor_rollout_ref.rollout
        prompts = self.train[:PARITY_PROMPTS]
        sampling = Sampling(min(PARITY_TOKENS, self.config.data.max_response_length), rollout.temperature)
        seeds = [[derive(self.config.data.seed, "parity", prompt.uid)] for prompt in prompts]
        responses = [r for some in self.workers.generate([p.token_ids for p in prompts], seeds, sampling) for r in some]
        samples = [
            Sample(prompts[r.prompt].uid, 0, i, prompts[r.prompt].token_ids, r.token_ids, r.sampler_logp) for i, r in enumerate(responses)
        ]
        plan = self._plan(Batch(samples), 1)
        scored = self.workers.score(Batch(samples), plan)
        self.workers.sync()  # a colocated engine gave its memory back meanwhile
        gaps = np.concatenate([np.abs(scored[i] - sample.sampler_logp) for i, sample in enumerate(samples)])
        self.once = {"rollout/start_logp_gap_mean": float(gaps.mean()), "rollout/start_logp_gap_max": float(gaps.max())}
        full = compute_dtype(self.config, torch.device(self.prepared.device)) == torch.float32
        limit = rollout.max_logp_gap or (1e-3 if full else 0.05)
        if not gaps.mean() <= limit:
            raise UserError(
                f"engine and student are not the same model: their log-probs of {len(gaps)} sampled tokens differ by {gaps.mean():.3g} "
                f"nats on average, {gaps.max():.3g} at most (actor_rollout_ref.rollout.max_logp_gap={limit:g}). What can be: another "
                "dtype in the engine, a temperature applied on one side only, stale or partly loaded weights, a model that "
                f"{rollout.name} computes differently. ROLLOUT_BACKEND=hf tells whether it is the engine."
            )
        self.display.say(f"engine and student agree: log-prob gap mean {gaps.mean():.1e}, max {gaps.max():.1e} over {len(gaps)} tokens")

    def train_step(self) -> dict[str, float]:
        """Run one training step and log it."""
        config, clock, step = self.config, Clock(), self.step + 1
        sampled = self.ahead.result() if self.ahead else self.sample_step(step)
        groups, self.ahead = sampled.groups, None
        if config.trainer.rollout_overlap and step < self.total_steps:
            self.ahead = self.background.submit(self.sample_step, step + 1)
        with clock("peers"):
            batch = self.objective.prepare(groups, self.chat, step)
            plan = self._plan(batch, len(groups))
        rate = learning_rate(config.actor_rollout_ref.actor.optim, step, self.total_steps)
        with clock("update"):
            report = self.workers.update(batch, plan, rate) if plan.mini_batches else Report()
        self._check_finite(report, batch, step)
        with clock("rollout_wait"):
            self._await_ahead()
        if not self.stop_requested:  # else the run ends here, and an engine may still be sampling what nobody waits for
            with clock("sync"):
                self.workers.sync()
        self.step = step

        write_rollouts(Path(config.trainer.rollout_data_dir) / f"{step}.jsonl", groups, self.chat, step, batch.contexts)
        metrics = self._metrics(groups, batch, report, rate, {**sampled.seconds, **clock.seconds}, clock.total) | self.once
        self.once = {}
        self.tracker.log(metrics, step)
        self.display.step(step, self.total_steps, metrics)
        for warning in self.monitor.check(metrics):
            self.display.warn(f"step {step}: {warning}")
        return metrics

    def _plan(self, batch: Batch, groups: int) -> Plan:
        return make_plan(
            batch,
            groups,
            self.config.actor_rollout_ref.actor,
            world_size=self.workers.world_size,
            max_response_length=self.config.data.max_response_length,
        )

    def sample_step(self, step: int) -> "Sampled":
        """Sample and judge the groups of a training step with the weights the engines hold."""
        clock, rollout = Clock(), self.config.actor_rollout_ref.rollout
        prompts = [self.train[i] for i in self.order.batch_of(step)]
        sampling = Sampling(self.config.data.max_response_length, rollout.temperature, rollout.top_p, rollout.top_k)
        return Sampled(self.sample(prompts, rollout.n, sampling, ("rollout", step), clock), clock.seconds)

    def _how_sampled(self) -> dict[str, Any]:
        rollout = self.config.actor_rollout_ref.rollout
        return {name: getattr(rollout, name) for name in ("n", "temperature", "top_p", "top_k")} | {
            "max_tokens": self.config.data.max_response_length
        }

    def _await_ahead(self) -> None:
        """Wait until the engines are idle: weights never change within a rollout. An interruption leaves this step to be finished."""
        if self.ahead is not None and isinstance(error := self.ahead.exception(), BaseException):
            self.ahead = None
            if not isinstance(error, Interrupted):
                raise error

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
                if self.stop_requested or self.leaving:
                    raise Interrupted
        self._tell_restart()
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

        def write(folder: Path) -> None:
            self.workers.save(folder)
            if self.ahead is not None:
                write_text(folder / AHEAD, json.dumps({"sampling": self._how_sampled(), **self.ahead.result().state()}))

        with self.display.working(f"saving step {self.step}"):
            return self.checkpoints.save(self.step, write, state)

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
        if self.config.trainer.rollout_overlap and (folder / AHEAD).is_file() and state["data"] == self.order.fingerprint(self.train):
            prompts = [self.train[i] for i in self.order.batch_of(self.step + 1)]
            kept = json.loads((folder / AHEAD).read_text())
            if kept["sampling"] == self._how_sampled():
                self.ahead = Future()
                self.ahead.set_result(Sampled.restored(kept, prompts, self.chat))
        self.first_validation, self.last_validation = state["first_validation"], state["last_validation"]

    def _tell_restart(self) -> None:
        """Warn once of an engine that died and was started again."""
        death = self.workers.death
        if death and death not in self.told:
            self.told.add(death)
            self.display.warn(f"an engine was started again, and what it had not finished was sampled again. {death}")

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

    def _metrics(
        self, groups: Sequence[Group], batch: Batch, report: Report, rate: float, seconds: Mapping[str, float], total: float
    ) -> dict[str, float]:
        distill = self.config.actor_rollout_ref.actor.self_distillation
        tokens = sum(len(r.token_ids) for group in groups for r in group.rollouts)
        out = {
            "training/global_step": self.step,
            "training/epoch": (self.step - 1) // self.order.steps_per_epoch,
            **m.rollout_metrics(groups),
            **batch.metrics,
            **m.update_metrics(batch.samples, report.records, self.objective.token_metrics),
            **teacher_metrics(batch.samples, report.records),
            **health_metrics(groups, batch.samples, report.records, distill),
            **self.seen.update(groups, distill.success_reward_threshold),
            "actor/lr": rate,
            "actor/skipped_steps": report.skipped,
            "rollout/engine_restarts": self.workers.restarts,
            **{f"timing_s/{name}": value for name, value in {**seconds, **report.seconds}.items()},
            "timing_s/step": total,
            "perf/throughput": tokens / total,
        }
        if report.peak_bytes:
            out["memory/peak_gib"] = report.peak_bytes / GIB
            if self.prepared.memory is not None:
                out["memory/predicted_gib"] = self.prepared.memory.expected / GIB
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


@dataclass(frozen=True)
class Sampled:
    """The judged groups of a step, and how long they took by phase."""

    groups: Sequence[Group]
    seconds: Mapping[str, float]

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of them, as JSON has it."""
        groups = [
            [
                {
                    "token_ids": rollout.token_ids.tolist(),
                    "sampler_logp": rollout.sampler_logp.tolist(),
                    "finished": rollout.finished,
                    "verdict": asdict(verdict),
                }
                for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
            ]
            for group in self.groups
        ]
        return {"groups": groups, "seconds": dict(self.seconds)}

    @classmethod
    def restored(cls, state: Mapping[str, Any], prompts: Sequence[Prompt], chat: Chat) -> "Sampled":
        """Return the groups of these prompts as they were."""

        def rollout(row: Mapping[str, Any]) -> Rollout:
            ids = np.array(row["token_ids"], np.int32)
            return Rollout(chat.decode(ids), ids, np.array(row["sampler_logp"], np.float32), row["finished"])

        def verdict(row: Mapping[str, Any]) -> Verdict:
            return Verdict(**{**row["verdict"], "outcome": Outcome(row["verdict"]["outcome"])})

        groups = [
            Group(prompt, [rollout(row) for row in rows], [verdict(row) for row in rows])
            for prompt, rows in zip(prompts, state["groups"], strict=True)
        ]
        return cls(groups, state["seconds"])


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
