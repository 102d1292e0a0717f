"""What a condition shows, by the trainer's own selection and renderer: what training shows is what is analysed.

Solutions, failures and feedback are settings of `trainer.peers.select`. The controls, for which training has no setting,
pick otherwise among the same peers, and summaries stand in the same slots under headings of their own; all of them are
put into the same frame by `trainer.peers.render`, within the same budget.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from analysis.conditions import Condition
from analysis.groups import SUCCESS
from analysis.rows import Row
from trainer import peers
from trainer.config.schema import SelfDistillation
from trainer.errors import UserError
from trainer.peers import Peer, PeerContext
from trainer.seeds import generator
from trainer.types import Group, Prompt

SUMMARY = {
    "another_solution_template": "\nSummary of another successful solution:\n\n{another_successful_attempt}",
    "failure_solution_template": "\nSummary of another unsuccessful solution:\n\n{failed_attempt}",
}
SECTION_OF = {"primary": "solution", "another": "another_solution", "failure": "failure_solution", "feedback": "feedback"}


@dataclass(frozen=True)
class Choice:
    """What one response's teacher is to be shown: `Peer.index` counts the `sources`; `first` is the source of the group's
    first success other than the response, shown or not; `summarised` says that another and failure are summaries."""

    prompt: Prompt
    context: PeerContext
    settings: SelfDistillation
    sources: Sequence[Row]
    first: int | None
    summarised: bool = False

    def section(self, role: str) -> str:
        """Return the published name of the section a role stands in."""
        return "summary" if self.summarised and role in ("another", "failure") else SECTION_OF[role]


@dataclass(frozen=True)
class Selector:
    """Selects as a run with these settings and this seed does. `elsewhere` are the candidate rows of all prompts."""

    settings: SelfDistillation
    seed: int
    elsewhere: Sequence[Row] = ()

    def choose(self, condition: Condition, group: Group, rows: Sequence[Row]) -> list[Choice]:
        """Return the choice for every response of a group, in row order."""
        settings = self._settings_of(condition)
        step = rows[0].get("rollout_step") or 0
        everyone = replace(
            settings,
            num_success_peers=len(rows),
            num_failure_peers=len(rows),
            include_environment_feedback=False,
            success_reward_threshold=SUCCESS,
        )
        all_of = peers.select(group, everyone, seed=self.seed, step=step)
        prompt = group.prompt
        if condition.force_reprompt:
            *before, last = prompt.messages
            nothing = dict.fromkeys(("solution", "another_solution", "failure", "feedback"), "")
            prompt = replace(
                prompt, messages=[*before, {**last, "content": settings.reprompt_template.format(prompt=last["content"], **nothing)}]
            )
        choices = []
        for plain, others in zip(peers.select(group, settings, seed=self.seed, step=step), all_of, strict=True):
            context, sources = self._context(condition, plain, others, rows, step)
            first = others.successes[0].index if others.successes else None
            choices.append(Choice(prompt, context, settings, sources, first, condition.include_summary))
        return choices

    def _context(
        self, condition: Condition, plain: PeerContext, others: PeerContext, rows: Sequence[Row], step: int
    ) -> tuple[PeerContext, Sequence[Row]]:
        """Return the context of a response, and the rows its peers' indices count: `plain` is what the settings alone give,
        `others` holds every peer there is."""
        if condition.force_raw_prompt:
            return PeerContext(plain.index), rows
        if condition.peer_control:
            successes, failures = self._controlled(condition, others, rows, step)
            return replace(plain, successes=successes, failures=failures), rows
        if condition.include_summary and others.successes:
            summaries, sources = self._summaries(condition, others, rows, step)
            passed = tuple(peer for peer in summaries if peer.role == "another")
            failed = tuple(peer for peer in summaries if peer.role == "failure")
            return replace(plain, successes=plain.successes + passed, failures=failed), sources
        return plain, rows

    @cached_property
    def _responses_of(self) -> Counter[str]:
        return Counter(row["uid"] for row in self.elsewhere)

    def _settings_of(self, condition: Condition) -> SelfDistillation:
        """Return the trainer's settings that show what a condition says."""
        if condition.as_trained:
            return replace(self.settings, success_reward_threshold=SUCCESS)
        if condition.include_summary and (
            condition.include_another_solution or condition.include_failure_solution or condition.peer_control
        ):
            raise UserError(
                f"condition {condition.name!r}: summaries stand in the slots of another_solution and failure_solution, so they cannot go "
                "together with these or with peer_control; --legacy-contexts has slots of their own."
            )
        presets = not condition.peer_control
        return replace(
            self.settings,
            num_success_peers=None,
            num_failure_peers=None,
            include_primary_solution=condition.include_solution and presets,
            include_another_solution=condition.include_another_solution and presets,
            include_failure_solution=condition.include_failure_solution and presets,
            failure_solution_condition="always",
            include_environment_feedback=condition.include_feedback,
            environment_feedback_only_without_solution=condition.feedback_only_without_solution,
            dont_reprompt_on_self_success=condition.dont_reprompt_on_self_success,
            success_reward_threshold=SUCCESS,
            **(SUMMARY if condition.include_summary else {}),
        )

    def _controlled(
        self, condition: Condition, others: PeerContext, rows: Sequence[Row], step: int
    ) -> tuple[tuple[Peer, ...], tuple[Peer, ...]]:
        """Return successes and failures to show in as many slots as two successes and a failure would take here.

        random: any peers, each called what its slot is, whatever it really is. score_ordered: those with the highest
        rewards, each called what it is.
        """
        slots, failure_slots = min(2, len(others.successes)), min(1, len(others.failures))
        if condition.peer_control == "random":
            order = generator(self.seed, "random peers", step, rows[0]["uid"], others.index).permutation(len(others.peers))
            drawn = [others.peers[i] for i in order[: slots + failure_slots]]
            successes, failures = drawn[:slots], drawn[slots:]
        else:
            best = sorted(others.peers, key=lambda peer: -rows[peer.index]["reward"])[: slots + failure_slots]
            successes, failures = ([peer for peer in best if rows[peer.index]["success"] is passed] for passed in (True, False))
        return (
            tuple(replace(peer, role="another" if place else "primary") for place, peer in enumerate(successes)),
            tuple(replace(peer, role="failure") for peer in failures),
        )

    def _summaries(self, condition: Condition, others: PeerContext, rows: Sequence[Row], step: int) -> tuple[list[Peer], Sequence[Row]]:
        """Return `summary_k` summaries as peers, each called what it is, and the rows their indices count.

        Of the group: a seeded sample of the other successes (or of all others) without the first success, one order per
        group. As a control: a seeded sample of the responses to other prompts.
        """
        uid = rows[0]["uid"]
        if condition.summary_control:
            rng = generator(self.seed, "other prompts", step, uid, others.index)
            drawn: dict[int, None] = {}
            while len(drawn) < min(condition.summary_k, len(self.elsewhere) - self._responses_of[uid]):
                j = int(rng.integers(len(self.elsewhere)))
                if self.elsewhere[j]["uid"] != uid:
                    drawn[j] = None
            sources = [*rows, *(self.elsewhere[j] for j in drawn)]
            chosen: Sequence[int] = range(len(rows), len(sources))
        else:
            from_all = others.peers if condition.summary_from_all else others.successes
            pool = {peer.index for peer in from_all} - {others.index, others.successes[0].index}
            order: np.ndarray = generator(self.seed, "summaries", step, uid).permutation(len(rows))
            sources, chosen = rows, [int(j) for j in order if j in pool][: condition.summary_k]
        texts = {j: sources[j]["summary_text_effective"] for j in chosen}
        return [Peer("another" if sources[j]["success"] else "failure", j, texts[j]) for j in chosen if texts[j].strip()], sources
