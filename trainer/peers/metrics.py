"""What is logged of the peer contexts of one step: the `self_distillation/*` names of behaviour 4.9, and the cuts."""

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.config.schema import SelfDistillation
from trainer.peers.render import TeacherPrompt
from trainer.peers.select import PeerContext, is_success
from trainer.types import Group

ROLES = ("primary", "another", "failure", "feedback")


def metrics(
    groups: Sequence[Group],
    contexts: Sequence[Sequence[PeerContext]],
    rendered: Mapping[tuple[int, int], TeacherPrompt],
    config: SelfDistillation,
) -> dict[str, float]:
    """Return the metrics of one step over all rollouts of all groups.

    Fractions are of rollouts unless the name says group. `success_sample_fraction` is, as published, the share of
    rollouts whose teacher is shown a primary success, not the share that passed.
    """
    prompts = [rendered[g, i] for g, members in enumerate(contexts) for i in range(len(members))]
    flat = [context for members in contexts for context in members]
    feedback = [verdict.feedback.strip() != "" and config.include_environment_feedback for group in groups for verdict in group.verdicts]
    solved = [any(is_success(*pair, config) for pair in zip(group.rollouts, group.verdicts, strict=True)) for group in groups]
    lengths = [len(prompt.token_ids) for prompt in prompts if prompt.shown] or [0]
    peer_tokens = [cut.tokens - cut.kept for prompt in prompts for cut in prompt.cuts]
    shown = {role: np.mean([role in prompt.shown for prompt in prompts]) for role in ROLES}
    values = {
        "success_group_fraction": np.mean(solved),
        "success_sample_fraction": shown["primary"],
        "another_solution_fraction": shown["another"],
        "failure_solution_fraction": shown["failure"],
        "feedback_available_fraction": np.mean(feedback),
        "feedback_used_fraction": shown["feedback"],
        "reprompt_sample_fraction": np.mean([bool(prompt.shown) for prompt in prompts]),
        "empty_context_fraction": np.mean([context.empty for context in flat]),
        "teacher_prompt_length/mean": np.mean(lengths),
        "teacher_prompt_length/max": np.max(lengths),
        "teacher_prompt_length/min": np.min(lengths),
        "teacher_prompt_length/clip_ratio": np.mean([bool(prompt.cuts) for prompt in prompts]),
        "peers_dropped": sum(cut.kept == 0 for prompt in prompts for cut in prompt.cuts),
        "peers_cut": sum(cut.kept > 0 for prompt in prompts for cut in prompt.cuts),
        "peer_tokens_cut": sum(peer_tokens),
        **{f"{role}_cut_fraction": np.mean([any(cut.role == role for cut in p.cuts) for p in prompts]) for role in ROLES},
        "markers_broken": sum(prompt.markers for prompt in prompts),
        "contexts_per_group": np.mean([len({context.key for context in members if not context.empty}) for members in contexts]),
    }
    return {f"self_distillation/{name}": float(value) for name, value in values.items()}
