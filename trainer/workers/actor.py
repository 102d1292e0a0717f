"""One rank of the actor: student, second model, optimizer. Needs no Ray; `Actor` alone is a whole actor of one rank.

A training step: for every micro-batch the second model's hidden states without gradient, the student's with, the
loss from both in chunks, backward; one optimizer step per mini-batch; then the teacher's EMA step.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainer import forest, objectives
from trainer.attention import plan_attention
from trainer.config.schema import Config
from trainer.fused import Head, head_loss, sampled_logp
from trainer.machine import peak_resident
from trainer.models import ForestLM, build_lm
from trainer.objectives.base import Tokens
from trainer.scores import Scores
from trainer.types import Sample
from trainer.workers import state
from trainer.workers.base import Report, Share
from trainer.workers.setup import compute_dtype
from trainer.workers.sharding import join, move, move_moments, reshard, shard, update_average, whole_weights


class Actor:
    """Builds the models of one rank and trains them. Every method is collective: all ranks call it together."""

    def __init__(self, config: Config, *, rank: int = 0, world_size: int = 1, device: str = "cpu", address: str | None = None) -> None:
        self.config, self.actor = config, config.actor_rollout_ref.actor
        self.device = torch.device(device)
        self.mesh = join(rank, world_size, self.device, address)
        self.rank = rank
        self.objective = objectives.build(config)
        self.temperature = config.actor_rollout_ref.rollout.temperature
        self.chunk = None if self.actor.head_chunk == "auto" else self.actor.head_chunk
        own, other = config.actor_rollout_ref.model, config.actor_rollout_ref.ref.model
        self.average_rate = self.actor.self_distillation.teacher_update_rate if self.objective.second_model == "teacher" else 0.0
        computed = compute_dtype(config, self.device)
        self.student = self._build(own.path, torch.float32, train=True)
        # an average needs float32: small steps would be rounded away. A model that stays as it is does not
        held = torch.float32 if self.average_rate > 0 else computed
        self.second = self._build(other.path or own.path, held, train=False) if self.objective.second_model else None
        optim = self.actor.optim
        self._optim_settings = {"betas": tuple(optim.betas), "eps": optim.eps, "weight_decay": optim.weight_decay}
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=optim.lr, fused=True, **self._optim_settings)
        fsdp = self.actor.fsdp_config
        self.moments_rest = fsdp.optimizer_offload
        self.resting = [self.student] if fsdp.param_offload else []  # what is in host memory but for a call that needs it
        if self.second is not None and config.actor_rollout_ref.ref.fsdp_config.param_offload:
            self.resting.append(self.second)
        for model in self.resting:
            move(model, "cpu")

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the models on the device, and let those that rest in host memory go back there afterwards."""
        for model in self.resting:
            move(model, self.device)
        try:
            yield
        finally:
            for model in self.resting:
                move(model, "cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # a colocated engine wants what the allocator would keep for later

    def _build(self, path: str, dtype: torch.dtype, *, train: bool) -> ForestLM:
        model, fsdp = self.config.actor_rollout_ref.model, self.actor.fsdp_config
        lm = build_lm(
            path,
            attention="forest",
            dtype=dtype,
            trust_remote_code=model.trust_remote_code,
            with_weights=self.rank == 0,
        )
        lm.requires_grad_(train)
        return shard(
            lm,
            mesh=self.mesh,
            compute_dtype=compute_dtype(self.config, self.device),
            reshard_after_forward=fsdp.reshard_after_forward,
            checkpointing=train and model.enable_gradient_checkpointing,
            compiled=self.actor.use_torch_compile,
        ).train(train)

    def update(self, share: Share, learning_rate: float) -> Report:
        """Train one step on this rank's share and return its report."""
        with self.at_work():
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            report = self._update(share, learning_rate)
            report.peak_bytes = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_resident()
            return report

    def _update(self, share: Share, learning_rate: float) -> Report:
        report = Report(seconds={"teacher": 0.0, "student": 0.0, "optimizer": 0.0, "old_logp": 0.0})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        steps = [step for _ in range(self.actor.ppo_epochs) for step in share.steps]
        start = self._now()
        old_logp = self._score(share) if len(steps) > 1 else None  # before any of them moves the student
        report.seconds["old_logp"] += self._now() - start
        moved = False
        for step in steps:
            loss = torch.zeros((), device=self.device)
            for micro in step:
                loss += self._accumulate(micro, share, old_logp, report)
            moved |= self._optimizer_step(loss, report)
        if moved and self.average_rate > 0:
            start = self._now()
            update_average(self.second, self.student, self.average_rate)
            report.seconds["optimizer"] += self._now() - start
        if self.second is not None:
            reshard(self.second)  # what a pass without gradient left whole
        return report

    def _accumulate(self, micro: Sequence[int], share: Share, old_logp: dict[int, np.ndarray] | None, report: Report) -> Tensor:
        """Run one micro-batch forward and backward; return its weighted loss (detached) and file its records."""
        samples = [share.samples[i] for i in micro]
        start = self._now()
        second = self._second_hidden(samples)
        report.seconds["teacher"] += self._now() - start

        start = self._now()
        tokens = self._tokens(samples, None if old_logp is None else [old_logp[i] for i in micro])
        weights = self._flat([np.full(len(s.response_ids), share.weights[i], np.float32) for i, s in zip(micro, samples, strict=True)])

        def loss_of(hidden: Tensor, head: Head) -> tuple[Tensor, dict[str, Tensor]]:
            known = self._with_sequence_ratio(tokens, hidden, head, samples)

            def token_loss(scores: Scores, rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
                losses, records = self.objective.token_loss(scores, known[rows])
                before = {} if known.old_logp is None else {"old_logp": known.old_logp[rows]}
                return (losses * weights[rows]).sum(), {**records, **before, "loss": losses}

            return head_loss(
                hidden,
                head,
                token_loss,
                targets=known.targets,
                second=second,
                divergence=self.objective.divergence,
                temperature=self.temperature,
                chunk=self.chunk,
            )

        loss, records = self._run(self.student, self._pack([(s.prompt_ids, s.response_ids) for s in samples]), loss_of)
        loss.backward()
        for i, record in self._by_sample(micro, samples, records):
            report.records[i] = record
        report.seconds["student"] += self._now() - start
        return loss.detach()

    @torch.no_grad()
    def _second_hidden(self, samples: Sequence[Sample]) -> tuple[Tensor, Head] | None:
        """Return the second model's hidden states at the rows that predict the responses, [R, H'], and its head."""
        if self.second is None:
            return None
        contexts = [(s.context_ids, s.response_ids) for s in samples]
        return self._run(self.second, self._pack(contexts), lambda hidden, head: (hidden, head))

    def score(self, share: Share) -> dict[int, np.ndarray]:
        """Return the student's log-probs of every sample's tokens, float32 [T], at the run's temperature."""
        with self.at_work():
            return self._score(share)

    @torch.no_grad()
    def _score(self, share: Share) -> dict[int, np.ndarray]:
        scores = {}
        for step in share.steps:
            for micro in step:
                samples = [share.samples[i] for i in micro]
                tokens = self._tokens(samples, None)
                logp = self._run(
                    self.student,
                    self._pack([(s.prompt_ids, s.response_ids) for s in samples]),
                    lambda hidden, head, tokens=tokens: self._sampled_logp(hidden, head, tokens),
                )
                scores |= {i: record["logp"] for i, record in self._by_sample(micro, samples, {"logp": logp})}
        return scores

    def _optimizer_step(self, loss: Tensor, report: Report) -> bool:
        """Clip and step, unless the loss of all ranks or the gradient is not finite; return whether it stepped."""
        start = self._now()
        if self.mesh.size() > 1:
            dist.all_reduce(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.actor.grad_clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        finite = bool(torch.isfinite(loss) and torch.isfinite(norm))
        if finite:
            with self._room_for_moments():
                self.optimizer.step()
        else:
            report.skipped += 1
        self.optimizer.zero_grad()
        report.losses.append(float(loss))
        report.grad_norms.append(float(norm))
        report.seconds["optimizer"] += self._now() - start
        return finite

    @contextmanager
    def _room_for_moments(self) -> Iterator[None]:
        """Have Adam's moments on the device; where they rest in host memory, a resting second model makes room for them."""
        gone = [self.second] if self.moments_rest and self.second in self.resting else []
        for model in gone:
            move(model, "cpu")
        if self.moments_rest:
            move_moments(self.optimizer, self.device)
        yield
        if self.moments_rest:
            move_moments(self.optimizer, "cpu")
        for model in gone:
            move(model, self.device)

    def _with_sequence_ratio(self, tokens: Tokens, hidden: Tensor, head: Head, samples: Sequence[Sample]) -> Tokens:
        """Add the log importance ratio of whole sequences where the objective weighs by it: one more pass of the head."""
        if self.config.algorithm.rollout_correction.rollout_is != "sequence":
            return tokens
        before = self._sampled_logp(hidden, head, tokens) if tokens.old_logp is None else tokens.old_logp
        counts = [len(s.response_ids) for s in samples]
        sums = [part.sum().expand(n) for part, n in zip((before - tokens.sampler_logp).split(counts), counts, strict=True)]
        return Tokens(tokens.targets, tokens.sampler_logp, tokens.advantage, tokens.old_logp, torch.cat(sums) if sums else before)

    def _sampled_logp(self, hidden: Tensor, head: Head, tokens: Tokens) -> Tensor:
        return sampled_logp(hidden, head, tokens.targets, self.temperature, self.chunk)

    def _pack(self, sequences: list[tuple[np.ndarray, np.ndarray]]) -> forest.Forest:
        # a rank with nothing left still runs the passes the others run, on one token without rows
        return forest.build(sequences or [(np.zeros(1, np.int32), np.empty(0, np.int32))])

    def _run(self, model: ForestLM, packed: forest.Forest, then):
        return model(packed, plan_attention(packed, self.device), then)

    def _tokens(self, samples: Sequence[Sample], old_logp: list[np.ndarray] | None) -> Tokens:
        return Tokens(
            targets=self._flat([s.response_ids for s in samples]).long(),
            sampler_logp=self._flat([s.sampler_logp for s in samples]).float(),
            advantage=self._flat([np.full(len(s.response_ids), s.advantage, np.float32) for s in samples]).float(),
            old_logp=None if old_logp is None else self._flat(old_logp).float(),
        )

    def _flat(self, parts: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate([*parts, np.empty(0, parts[0].dtype if len(parts) else np.float32)])).to(self.device)

    @staticmethod
    def _by_sample(micro: Sequence[int], samples: Sequence[Sample], records: dict[str, Tensor]):
        """Yield (position, records of that sample) from records of all tokens laid end to end."""
        arrays = {name: value.float().cpu().numpy() for name, value in records.items()}
        ends = np.cumsum([len(s.response_ids) for s in samples])
        for i, s, end in zip(micro, samples, ends, strict=True):
            yield i, {name: array[end - len(s.response_ids) : end].copy() for name, array in arrays.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def weights(self, dtype: torch.dtype, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return on rank 0 the student's weights whole, by the model's own names, on the CPU in `dtype`; else nothing.

        `only` names those wanted; the head of tied embeddings goes by the embedding's name.
        """
        with self.at_work():
            return self._weights(dtype, only)

    def _weights(self, dtype: torch.dtype, only: Sequence[str] | None = None) -> dict[str, Tensor]:
        reshard(self.student)
        return whole_weights(self.student, dtype, keep=self.rank == 0, only=only)

    def save(self, folder: str) -> None:
        """Write this rank's part of the training state, and from rank 0 `huggingface/`, into an existing folder.

        Raises OSError if it cannot be written.
        """
        with self.at_work(), state.writing(folder):
            weights = self._weights(compute_dtype(self.config, self.device))
            state.save(Path(folder), self.student, self._average, self.optimizer)
            if self.rank == 0:
                state.save_huggingface(Path(folder) / "huggingface", self.student.lm, weights, self.config.actor_rollout_ref.model.path)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote, on any number of ranks."""
        with self.at_work():
            reshard(self.student)
            state.load(Path(folder), self.student, self._average, self.optimizer)
            if self.moments_rest:
                move_moments(self.optimizer, "cpu")
        for group in self.optimizer.param_groups:  # the settings are those of this run, the moments those of the checkpoint
            group.update(self._optim_settings)

    @property
    def _average(self) -> ForestLM | None:
        """The second model if it is an average of the student; a fixed one is not saved, it is where it came from."""
        return self.second if self.average_rate > 0 else None
