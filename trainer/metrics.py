"""What is logged of a training step, as pure functions of the groups, the batch and the actor's records."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from trainer.types import Group, Outcome, Sample

Records = Mapping[int, Mapping[str, np.ndarray]]


def spread(name: str, values: Iterable[float]) -> dict[str, float]:
    """Return name/mean, name/max and name/min."""
    array = np.asarray(list(values), np.float64)
    return {f"{name}/mean": float(array.mean()), f"{name}/max": float(array.max()), f"{name}/min": float(array.min())}


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Return lengths, scores and verdicts of the rollouts of a step."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    out = {
        **spread("response_length", [len(rollout.token_ids) for rollout in rollouts]),
        **spread("prompt_length", [len(group.prompt.token_ids) for group in groups]),
        **spread("critic/score", [verdict.reward for verdict in verdicts]),
        "response_length/clip_ratio": float(np.mean([not rollout.finished for rollout in rollouts])),
    }
    for outcome in Outcome:
        out[f"rollout/outcome/{outcome}"] = float(np.mean([verdict.outcome == outcome for verdict in verdicts]))
    return out


def update_metrics(samples: Sequence[Sample], records: Records, token_metrics: Mapping[str, str]) -> dict[str, float]:
    """Return what the actor's records of one step say; empty if nothing was trained.

    `rollout/logp_gap_*` compare student and sampler at the sampled tokens, in nats; with exact weight sync and
    temperature they are numerical noise. `rollout_corr/*` describe the importance weights.
    """
    if not records:
        return {}
    joined = {name: np.concatenate([record[name] for record in records.values()]) for name in next(iter(records.values()))}
    sampler = np.concatenate([samples[i].sampler_logp for i in records])
    log_ratio = joined.get("old_logp", joined["student_logp"]) - sampler  # before the step moved the student
    gap, weight = np.abs(log_ratio), joined["importance_weight"]
    out = {
        "rollout/logp_gap_mean": float(gap.mean()),
        "rollout/logp_gap_max": float(gap.max()),
        "rollout/logp_gap_p99": float(np.quantile(gap, 0.99)),
        "rollout_corr/kl": float(-log_ratio.mean()),
        "rollout_corr/k3_kl": float((np.exp(log_ratio) - 1 - log_ratio).mean()),
        "rollout_corr/rollout_is_mean": float(weight.mean()),
        "rollout_corr/rollout_is_max": float(weight.max()),
        "rollout_corr/rollout_is_min": float(weight.min()),
        "rollout_corr/rollout_is_eff_sample_size": float(weight.sum() ** 2 / (len(weight) * np.square(weight).sum())),
        "actor/entropy": float(joined["entropy"].mean()),
    }
    out.update({label: float(joined[name].mean()) for name, label in token_metrics.items() if name in joined})
    return out


class Seen:
    """Which prompts the run has seen and solved (behaviour 4.9); saved with the checkpoint."""

    def __init__(self, seen: Iterable[str] = (), solved: Iterable[str] = ()) -> None:
        self.seen, self.solved = set(seen), set(solved)

    def update(self, groups: Sequence[Group], threshold: float) -> dict[str, float]:
        """Take in a step's groups and return the run's tallies."""
        self.seen |= {group.prompt.uid for group in groups}
        self.solved |= {group.prompt.uid for group in groups if any(verdict.reward >= threshold for verdict in group.verdicts)}
        return {
            "self_distillation/uid_seen_count": float(len(self.seen)),
            "self_distillation/uid_ever_success_count": float(len(self.solved)),
            "self_distillation/uid_never_success_count": float(len(self.seen - self.solved)),
            "self_distillation/uid_ever_success_fraction": len(self.solved) / max(1, len(self.seen)),
        }

    def state(self) -> dict[str, list[str]]:
        """Return what `Seen(**state)` restores."""
        return {"seen": sorted(self.seen), "solved": sorted(self.solved)}
