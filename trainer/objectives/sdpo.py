"""Self-distillation from peers: MOPD, SDPO and teacher-student distillation are settings of this objective.

The teacher reads the peer context and the student's own tokens; the student is pulled toward the teacher's
distribution at every response token. Who is the teacher: `ref.model.path` and `teacher_update_rate`. What it sees:
`trainer.peers`. Which distance: `trainer.divergence`.

Rollouts without a peer context are dropped before any forward pass and do not count in the denominators: the loss is
a mean over what is distilled (the published loss mask, but over the whole optimizer batch). A step in which few
rollouts have something to learn from is therefore as long as any other; `health/distilled_fraction` shows how few.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from trainer import peers
from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.divergence import Divergence
from trainer.objectives.base import Objective, Tokens
from trainer.objectives.importance import sampler_weight, truncated_ratio
from trainer.scores import Scores
from trainer.types import Batch, Group, Sample


class SelfDistillationObjective(Objective):
    """loss_mode=sdpo (arXiv 2605.12652, 2601.20802)."""

    second_model = "teacher"
    token_metrics: ClassVar = {
        "divergence": "self_distillation/divergence",
        "teacher_gap": "self_distillation/teacher_logp_minus_student",
        "topk_mass": "self_distillation/topk_mass",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        distill = self.actor.self_distillation
        if distill.full_logit_distillation:
            self.divergence = Divergence(distill.alpha, distill.distillation_topk, distill.distillation_add_tail)

    def prepare(self, groups: Sequence[Group], chat: Chat, step: int) -> Batch:
        """Select peers, render the teacher's prompts and keep the rollouts that have something to learn from."""
        distill, seed = self.actor.self_distillation, self.config.data.seed
        contexts = [peers.select(group, distill, seed=seed, step=step) for group in groups]
        samples, rendered = [], {}
        for g, group in enumerate(groups):
            memo: dict[tuple, peers.TeacherPrompt] = {}  # most members of a group share their context
            for i, context in enumerate(contexts[g]):
                if context.key not in memo:
                    memo[context.key] = peers.render(group.prompt, context, distill, chat)
                rendered[g, i] = memo[context.key]
                rollout = group.rollouts[i]
                if memo[context.key].shown and len(rollout.token_ids):
                    samples.append(
                        Sample.of(
                            group,
                            g,
                            i,
                            context_ids=memo[context.key].token_ids,
                            passed=peers.is_success(rollout, group.verdicts[i], distill),
                        )
                    )
        return Batch(
            samples=samples,
            metrics=peers.metrics(groups, contexts, rendered, distill),
            contexts={(g, i): context for g, group in enumerate(contexts) for i, context in enumerate(group)},
        )

    def token_loss(self, scores: Scores, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return weight x divergence of each token; see `Objective.token_loss`."""
        student_logp, is_clip = scores.student_logp, self.actor.self_distillation.is_clip
        if self.divergence is not None:
            loss = divergence = scores.divergence
        else:  # score-function surrogate: its gradient is that of KL(student || teacher), its value is not
            divergence = (student_logp - scores.second_logp).detach()
            loss = divergence * student_logp
        importance = sampler_weight(tokens, student_logp, mode=self.correction.rollout_is, cap=self.correction.rollout_is_threshold)
        loss = loss * importance
        if is_clip is not None and tokens.old_logp is not None:
            loss = loss * truncated_ratio(student_logp - tokens.old_logp, is_clip)
        if self.actor.entropy_coeff:
            loss = loss - self.actor.entropy_coeff * scores.entropy
        records = {
            "student_logp": student_logp,
            "teacher_gap": scores.second_logp - student_logp,
            "entropy": scores.entropy,
            "divergence": divergence,
            "importance_weight": importance,
        }
        if scores.topk_mass is not None:
            records["topk_mass"] = scores.topk_mass
        return loss, {name: value.detach() for name, value in records.items()}
