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
from trainer.divergence import token_divergence
from trainer.objectives.base import Objective, Tokens, entropy, sampled_logp
from trainer.objectives.importance import sampler_weight, truncated_ratio
from trainer.types import Batch, Group, Sample


class SelfDistillationObjective(Objective):
    """loss_mode=sdpo (arXiv 2605.12652, 2601.20802)."""

    second_model = "teacher"
    token_metrics: ClassVar = {
        "divergence": "self_distillation/divergence",
        "teacher_gap": "self_distillation/teacher_logp_minus_student",
    }

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

    def token_loss(self, student_logits: Tensor, second_logits: Tensor | None, tokens: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
        """Return weight x divergence of each token; see `Objective.token_loss`."""
        assert second_logits is not None, "sdpo needs teacher logits"
        distill = self.actor.self_distillation
        student_logp = sampled_logp(student_logits, tokens.targets)
        teacher_logp = sampled_logp(second_logits, tokens.targets)
        if distill.full_logit_distillation:
            words = min(student_logits.shape[-1], second_logits.shape[-1])  # embeddings may be padded differently
            loss = divergence = token_divergence(
                student_logits[:, :words],
                second_logits[:, :words],
                alpha=distill.alpha,
                topk=distill.distillation_topk,
                add_tail=distill.distillation_add_tail,
            )
        else:  # score-function surrogate: its gradient is that of KL(student || teacher), its value is not
            divergence = (student_logp - teacher_logp).detach()
            loss = divergence * student_logp
        importance = sampler_weight(tokens, student_logp, mode=self.correction.rollout_is, cap=self.correction.rollout_is_threshold)
        loss = loss * importance
        if distill.is_clip is not None and tokens.old_logp is not None:
            loss = loss * truncated_ratio(student_logp - tokens.old_logp, distill.is_clip)
        spread = entropy(student_logits if self.actor.entropy_coeff else student_logits.detach())
        if self.actor.entropy_coeff:
            loss = loss - self.actor.entropy_coeff * spread
        return loss, {
            "student_logp": student_logp.detach(),
            "teacher_gap": teacher_logp - student_logp.detach(),
            "entropy": spread.detach(),
            "divergence": divergence.detach(),
            "importance_weight": importance,
        }
