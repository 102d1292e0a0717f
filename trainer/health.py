"""Is the run well? Numbers that show trouble early, and warnings that name the likely cause and the key to turn.

A warning is a row of RULES. `docs/metrics.md` says how each failure looks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.config.schema import SelfDistillation
from trainer.metrics import Records
from trainer.peers import is_success
from trainer.types import Group, Sample

WINDOW = 5  # steps a mean is taken over before it is compared with a threshold


def health_metrics(groups: Sequence[Group], samples: Sequence[Sample], records: Records, config: SelfDistillation) -> dict[str, float]:
    """Return the `health/*` numbers of one step.

    Groups: `all_pass`, `all_fail`, `lone_success` (one success) and `mixed` (two successes or more and a failure) add up
    to 1. `distilled_fraction` is the share of rollouts that were trained on.
    """
    rollouts = sum(len(group.rollouts) for group in groups)
    counts = [sum(is_success(r, v, config) for r, v in zip(group.rollouts, group.verdicts, strict=True)) for group in groups]
    kinds = [
        "all_fail" if c == 0 else "all_pass" if c == len(group.rollouts) else "lone_success" if c == 1 else "mixed"
        for c, group in zip(counts, groups, strict=True)
    ]
    out = {f"health/groups_{kind}": kinds.count(kind) / len(groups) for kind in ("all_fail", "all_pass", "lone_success", "mixed")}
    out["health/distilled_fraction"] = len(records) / max(1, rollouts)
    out["health/repetition"] = float(np.mean([_repetition(r.token_ids) for group in groups for r in group.rollouts]))
    for verdict, wanted in (("passed", True), ("failed", False)):
        mine = [record["divergence"] for i, record in records.items() if samples[i].passed is wanted and "divergence" in record]
        if mine:
            out[f"health/divergence_{verdict}"] = float(np.concatenate(mine).mean())
    first = [record["divergence"][0] for record in records.values() if "divergence" in record]
    if first:
        out["health/divergence_first_token"] = float(np.mean(first))
    return out


def _repetition(ids: np.ndarray) -> float:
    """Return the share of a response's 4-grams that occurred in it before."""
    grams = [tuple(ids[i : i + 4]) for i in range(len(ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True)
class Rule:
    """Warn when `test` holds of the means of `metrics` over the last WINDOW steps (and their first values in the run)."""

    name: str
    metrics: tuple[str, ...]
    test: Callable[..., bool]
    says: str


RULES = (
    Rule(
        "idle",
        ("health/distilled_fraction",),
        lambda now, start: now < 0.05,
        "hardly any rollout has something to learn from ({now:.0%} trained on). Groups are all-fail or all-pass: easier or "
        "harder prompts, more rollouts (actor_rollout_ref.rollout.n), or failures always shown "
        "(failure_solution_condition=always, include_failure_solution=True)",
    ),
    Rule(
        "truncation",
        ("response_length/clip_ratio",),
        lambda now, start: now > 0.10,
        "{now:.0%} of rollouts are cut by the response budget; they score as the verifier says and are shown to no teacher "
        "(failed ones with self_distillation.allow_truncated_peers=True). "
        "Raise data.max_response_length",
    ),
    Rule(
        "sampler gap",
        ("rollout/logp_gap_mean",),
        lambda now, start: now > 0.05,
        "student and sampler disagree by {now:.3f} nats a token on average: stale weights, another dtype or temperature, or a "
        "chat template that differs between them",
    ),
    Rule(
        "entropy collapse",
        ("actor/entropy", "critic/score/mean"),
        lambda now, start, score: start > 0.05 and now < 0.1 * start and score < 0.9,
        "entropy fell to {now:.3f} from {start:.3f}: rollouts of a group become the same and teach nothing. Lower "
        "actor_rollout_ref.actor.optim.lr, or stop here",
    ),
    Rule(
        "repetition",
        ("health/repetition",),
        lambda now, start: now > max(0.2, 3 * start),
        "responses repeat themselves ({now:.0%} of 4-grams, {start:.0%} at the start): the policy is coming apart. Lower "
        "actor_rollout_ref.actor.optim.lr, or alpha toward 1, and go back to an earlier checkpoint (trainer.resume_mode=resume_path)",
    ),
    Rule(
        "score collapse",
        ("critic/score/mean",),
        lambda now, start: start > 0.05 and now < 0.5 * start,
        "the mean score fell to {now:.2f} from {start:.2f}. Lower actor_rollout_ref.actor.optim.lr, or the teacher's update rate "
        "(self_distillation.teacher_update_rate)",
    ),
    Rule(
        "first token",
        ("health/divergence_first_token", "self_distillation/divergence"),
        lambda now, start, rest: rest > 0 and now > 20 * rest and now > 0.1,
        "the first response token diverges by {now:.2f} nats, far more than the rest ({rest:.3f}): student and teacher open the "
        "answer differently. Compare the two prompts of trainer.dry_run=True",
    ),
    Rule(
        "peers cut",
        ("self_distillation/teacher_prompt_length/clip_ratio",),
        lambda now, start: now > 0.25,
        "{now:.0%} of teacher prompts had peers dropped or cut to fit. Raise self_distillation.max_reprompt_len",
    ),
    Rule(
        "verifier errors",
        ("rollout/outcome/error",),
        lambda now, start: now > 0.01,
        "the verifier itself failed on {now:.1%} of rollouts, which are then neither success nor failure: see `error` in the "
        "rollout dump, and reward.timeout",
    ),
)


class Monitor:
    """Compares the last steps with the rules; each rule speaks once until it has been well again."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.start: dict[str, float] = {}
        self.speaking: set[str] = set()

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in the metrics of a step and return the warnings that are new."""
        for name in {name for rule in RULES for name in rule.metrics}:
            if name in metrics:
                self.start.setdefault(name, metrics[name])
                self.history.setdefault(name, []).append(metrics[name])
                self.history[name] = self.history[name][-WINDOW:]
        warnings = []
        for rule in RULES:
            recent = [self.history.get(name, []) for name in rule.metrics]
            if any(len(values) < WINDOW for values in recent):
                continue
            now, *rest = (float(np.mean(values)) for values in recent)
            start = self.start[rule.metrics[0]]
            if rule.test(now, start, *rest):
                if rule.name not in self.speaking:
                    warnings.append(f"{rule.name}: {rule.says.format(now=now, start=start, rest=rest[0] if rest else 0.0)}.")
                self.speaking.add(rule.name)
            else:
                self.speaking.discard(rule.name)
        return warnings

    def state(self) -> dict:
        """Return what `restore` takes; saved with the checkpoint."""
        return {"history": self.history, "start": self.start, "speaking": sorted(self.speaking)}

    def restore(self, state: Mapping) -> None:
        """Go on where `state` was taken."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self.start, self.speaking = dict(state["start"]), set(state["speaking"])
