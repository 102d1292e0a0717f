"""GRPO as a PPO-style policy gradient: the baseline over the same rollouts (behaviour 5.5, appendix C)."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.objectives.base import Objective, Tokens
from trainer.objectives.importance import sampler_weight, update_ratio
from trainer.objectives.kl import kl_estimate
from trainer.peers import is_success
from trainer.scores import Scores
from trainer.types import Batch, Group, Outcome, Sample


def grpo_advantages(rewards: Sequence[float], *, normalise_by_std: bool) -> np.ndarray:
    """Return reward minus group mean, float64 [n], optionally divided by the sample standard deviation + 1e-6.

    NaN stands for a rollout that could not be judged: it is left out of mean and deviation and its advantage is 0.
    A group of one keeps its reward (mean 0, deviation 1), as published.
    """
    scores = np.asarray(rewards, np.float64)
    advantages, judged = np.zeros(len(scores)), np.isfinite(scores)
    known = scores[judged]
    if len(known) > 1:
        known = known - known.mean()
        if normalise_by_std:
            known = known / (scores[judged].std(ddof=1) + 1e-6)
    advantages[judged] = known
    return advantages


class PolicyGradientObjective(Objective):
    """loss_mode=vanilla: clipped ratios with clip-higher and dual clip, KL to a reference as a loss."""

    token_metrics: ClassVar = {
        "clipped": "actor/pg_clipfrac",
        "clipped_lower": "actor/pg_clipfrac_lower",
        "reference_kl": "actor/kl_loss",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.second_model = "reference" if self.actor.use_kl_loss else None

    def prepare(self, groups: Sequence[Group], chat: Chat, step: int) -> Batch:
        """Compute group-relative advantages; a zero advantage is inactive unless another term has a gradient."""
        only_advantage = not self.actor.use_kl_loss and self.actor.entropy_coeff == 0
        samples, advantages = [], []
        for g, group in enumerate(groups):
            rewards = [np.nan if verdict.outcome == Outcome.ERROR else verdict.reward for verdict in group.verdicts]
            group_advantages = grpo_advantages(rewards, normalise_by_std=self.config.algorithm.norm_adv_by_std_in_grpo)
            advantages.extend(group_advantages)
            for i, rollout in enumerate(group.rollouts):
                samples.append(
                    Sample.of(
                        group,
                        g,
                        i,
                        context_ids=group.prompt.token_ids if self.second_model else None,
                        advantage=float(group_advantages[i]),
                        passed=is_success(rollout, group.verdicts[i], self.actor.self_distillation),
                        active=not only_advantage or bool(group_advantages[i] != 0),
                    )
                )
        return Batch(
            samples=samples,
            metrics={f"critic/advantages/{name}": float(getattr(np, name)(advantages)) for name in ("mean", "max", "min")},
        )

    def token_loss(self, scores: Scores, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped policy-gradient loss of each token plus KL and entropy terms; see `Objective.token_loss`."""
        actor, advantage, student_logp = self.actor, tokens.advantage, scores.student_logp
        ratio = update_ratio(tokens, student_logp)
        clipped = ratio.clamp(1 - actor.clip_ratio_low, 1 + actor.clip_ratio_high)
        loss = torch.maximum(-advantage * ratio, -advantage * clipped)
        dual = torch.where(advantage < 0, -advantage * actor.clip_ratio_c, torch.inf)
        importance = sampler_weight(tokens, student_logp, mode=self.correction.rollout_is, cap=self.correction.rollout_is_threshold)
        records = {
            "student_logp": student_logp,
            "entropy": scores.entropy,
            "importance_weight": importance,
            "clipped": (-advantage * clipped > -advantage * ratio).float(),
            "clipped_lower": (loss > dual).float(),
        }
        loss = torch.minimum(loss, dual) * importance
        if actor.entropy_coeff:
            loss = loss - actor.entropy_coeff * scores.entropy
        if scores.second_logp is not None:
            records["reference_kl"] = reference_kl = kl_estimate(actor.kl_loss_type, student_logp, scores.second_logp)
            loss = loss + actor.kl_loss_coef * reference_kl
        return loss, {name: value.detach() for name, value in records.items()}
