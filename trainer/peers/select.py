"""Who is shown to the teacher: for each rollout of a group, which of the others.

Every member takes the first k successes and the first m failures other than itself, in one seeded random order per
group, so most members share one teacher prompt. The three include_* keys are presets of k and m. What happens in
the groups that teach little:

    all fail      failures and feedback only (both conditions of `failure_solution_condition`)
    all pass      successes only
    lone success  it sees failures alone; the others see it
    no peer       an empty context: the rollout is not distilled

Sources: arXiv 2605.12652; selection rules and test vectors in behaviour 4.2, 4.5 and 12.3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.schema import SelfDistillation
from trainer.seeds import generator
from trainer.types import Group, Outcome, Rollout, Verdict


@dataclass(frozen=True)
class Peer:
    """Another rollout of the group. `role` is primary (1st success), another (later success) or failure."""

    role: str
    index: int
    text: str


@dataclass(frozen=True)
class PeerContext:
    """What the teacher is shown beside the question when it scores rollout `index`."""

    index: int
    successes: tuple[Peer, ...] = ()
    failures: tuple[Peer, ...] = ()
    feedback: str | None = None

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers in the order in which the prompt shows them."""
        return self.successes + self.failures

    @property
    def primary(self) -> Peer | None:
        return next((peer for peer in self.successes if peer.role == "primary"), None)

    @property
    def another(self) -> Peer | None:
        return next((peer for peer in self.successes if peer.role == "another"), None)

    @property
    def failure(self) -> Peer | None:
        return next(iter(self.failures), None)

    @property
    def empty(self) -> bool:
        """True when there is nothing to show: such a rollout is not distilled (mask 0 of behaviour 4.7)."""
        return not self.peers and self.feedback is None

    @property
    def key(self) -> tuple:
        """Equal for contexts that read the same, whoever they are for."""
        return self.peers, self.feedback


def is_success(rollout: Rollout, verdict: Verdict, config: SelfDistillation) -> bool:
    """Return whether a rollout can be shown as a success: right, finished, and really judged."""
    return rollout.finished and verdict.outcome != Outcome.ERROR and verdict.reward >= config.success_reward_threshold


def is_failure(rollout: Rollout, verdict: Verdict, config: SelfDistillation) -> bool:
    """Return whether a rollout can be shown as a failure. Truncated ones only if `allow_truncated_peers`."""
    judged_wrong = verdict.outcome != Outcome.ERROR and verdict.reward < config.success_reward_threshold
    return judged_wrong and (rollout.finished or config.allow_truncated_peers)


def wanted(config: SelfDistillation) -> tuple[int, int]:
    """Return (k, m): how many successes and failures a context may show."""
    preset_k = 2 if config.include_another_solution else int(config.include_primary_solution)
    k = preset_k if config.num_success_peers is None else config.num_success_peers
    m = int(config.include_failure_solution) if config.num_failure_peers is None else config.num_failure_peers
    return k, m


def select(group: Group, config: SelfDistillation, *, seed: int, step: int) -> list[PeerContext]:
    """Return the peer context of every rollout of the group, in rollout order.

    Pure: the same group, config, run seed and step give the same contexts. A rollout is never shown itself, unless
    `dont_reprompt_on_self_success` is False, which lets a success see its own text as a success.
    """
    uid, order = group.prompt.uid, list(range(len(group.rollouts)))
    if config.peer_order == "random":
        generator(seed, "peer order", step, uid).shuffle(order)
    judged = list(zip(group.rollouts, group.verdicts, strict=True))
    texts = [_demonstration(rollout.text, config) for rollout in group.rollouts]
    told = [i for i in order if texts[i].strip()]  # an empty response shows nothing
    successes = [i for i in told if is_success(*judged[i], config)]
    failures = [i for i in told if is_failure(*judged[i], config)]
    return [_context(i, group, config, successes, failures, texts, seed, step) for i in range(len(group.rollouts))]


def _context(
    i: int,
    group: Group,
    config: SelfDistillation,
    successes: Sequence[int],
    failures: Sequence[int],
    texts: Sequence[str],
    seed: int,
    step: int,
) -> PeerContext:
    k, m = wanted(config)
    others = [j for j in successes if j != i or not config.dont_reprompt_on_self_success]
    shown = [Peer("another" if place else "primary", j, texts[j]) for place, j in enumerate(others[:k])]
    if config.num_success_peers is None and not config.include_primary_solution:
        shown = shown[1:]  # "another" is the second success also when the first is not shown (behaviour 4.2)

    failed = [j for j in failures if j != i]
    if config.failure_order == "per_member":
        generator(seed, "failed peers", step, group.prompt.uid, i).shuffle(failed)
    if config.failure_solution_condition == "when_no_solution" and others:
        failed = []

    feedback = None
    if config.include_environment_feedback and group.verdicts[i].feedback.strip():
        has_primary = any(peer.role == "primary" for peer in shown)
        if not (config.environment_feedback_only_without_solution and has_primary):
            feedback = group.verdicts[i].feedback
    return PeerContext(
        index=i,
        successes=tuple(shown),
        failures=tuple(Peer("failure", j, texts[j]) for j in failed[:m]),
        feedback=feedback,
    )


_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def _demonstration(text: str, config: SelfDistillation) -> str:
    """Return a peer's text; with `remove_thinking_from_demonstration` without think spans, unclosed ones included."""
    return _THINKING.sub("", text) if config.remove_thinking_from_demonstration else text
