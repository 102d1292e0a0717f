"""Is the teacher right, and what does it know only because a peer says it? Scores of the run's own rollouts under other contexts.

Contexts are those of `analysis.conditions`, by the trainer's own selection and renderer; scores are the run's own actor's.
Only groups with both verdicts say anything here. A response that a context shows nothing for is left out, as in training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import signal
from analysis.conditions import CONDITIONS
from analysis.preflight.answers import mask_of
from analysis.preflight.measure import Step, plan_of
from analysis.shown import Selector
from trainer import peers
from trainer.batching import Plan
from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.loop import Loop
from trainer.seeds import generator
from trainer.teacher_signal import auc
from trainer.types import Batch, Group, Outcome, Sample

OWN, MASKED = "own", "masked"  # the run's own contexts, and the same without final answers
CONTEXTS = {
    "base": "base",
    "1S": "solution",
    "2S": "solution+another_solution",
    "1F": "failure_solution",
    "2S+1F": "solution+another_solution+failure_solution",
    OWN: "training",
}
PAIRS = (("1S", "2S"), ("2S", "2S+1F"))  # what the second success adds, and what the failure adds
RESAMPLES = 2000

Score = Callable[[Sequence[Sample]], list[np.ndarray]]  # samples -> log-probs of their responses, float32 [T] each


@dataclass(frozen=True, eq=False)
class Asked:
    """A group with both verdicts. `success` [n]; `prompts` are the teacher's by context, None for a response it shows nothing for;
    `counted` leaves out what the verifier failed on and what has no tokens. `maskable` says that its source has final answers."""

    group: Group
    success: np.ndarray
    counted: np.ndarray
    prompts: dict[str, list[np.ndarray | None]]
    maskable: bool
    answers: int  # peers shown by the run's own contexts, over all rollouts, that hold an answer


@dataclass(frozen=True, eq=False)
class Read:
    """The group's scores by context, means over tokens [n]: the teacher's own, and `gap`, teacher minus student. NaN: shown nothing."""

    asked: Asked
    teacher: dict[str, np.ndarray]
    gap: dict[str, np.ndarray]


def ask(loop: Loop, steps: Sequence[Step]) -> dict[str, Any]:
    """Return what the run's teacher says of the steps' rollouts, as plain values."""
    return {**report(read(loop, steps), loop.config), "budget": budget(steps, loop.config, loop.chat)}


def read(loop: Loop, steps: Sequence[Step]) -> list[Read]:
    """Have the run's own actor score the steps' groups with both verdicts under every context."""
    own_teacher = loop.config.actor_rollout_ref.ref.model.path is None

    def run(samples: Sequence[Sample], work: Callable[[Batch, Plan], Any]) -> Any:
        batch = Batch(samples)
        return work(batch, plan_of(loop, batch, max(sample.group for sample in samples) + 1))

    def student(samples: Sequence[Sample]) -> list[np.ndarray]:
        found = run([replace(s, prompt_ids=s.context_ids, context_ids=None) for s in samples], loop.workers.score)
        return [found[i] for i in range(len(samples))]

    def second(samples: Sequence[Sample]) -> list[np.ndarray]:  # another model than the student speaks in updates only
        records = run(samples, lambda batch, plan: loop.workers.update(batch, plan, 0.0)).records
        return [records[i]["student_logp"] + records[i]["teacher_gap"] for i in range(len(samples))]

    found = []
    for step in steps:
        found += scores(questions(step, loop.config, loop.chat), student, student if own_teacher else second)
    return found


def questions(step: Step, config: Config, chat: Chat) -> list[Asked]:
    """Return a step's groups with both verdicts, and what the teacher would be shown under every context."""
    distill = config.actor_rollout_ref.actor.self_distillation
    selector = Selector(distill, config.data.seed)
    out = []
    for group in step.groups:
        judged = np.array([verdict.outcome != Outcome.ERROR for verdict in group.verdicts])
        counted = judged & np.array([len(rollout.token_ids) > 0 for rollout in group.rollouts])
        success = np.array([verdict.reward >= distill.success_reward_threshold for verdict in group.verdicts])
        if len(set(success[counted])) < 2:
            continue
        as_said = replace(group, verdicts=[replace(v, reward=float(s)) for v, s in zip(group.verdicts, success, strict=True)])
        rows = [{"uid": group.prompt.uid, "rollout_step": step.number}] * len(success)
        prompts: dict[str, list[np.ndarray | None]] = {}
        for name, condition in CONTEXTS.items():
            choices = selector.choose(CONDITIONS[condition], as_said, rows)
            contexts = [choice.context for choice in choices]
            prompts[name] = _rendered(group, contexts, choices[0].settings, chat, always=name == "base")
        mask = mask_of(group.prompt.data_source, config)
        if mask is not None:  # `contexts` are the run's own, the last ones
            masked = [_masked(context, mask) for context in contexts]
            prompts[MASKED] = _rendered(group, masked, distill, chat)
        answers = sum(mask is not None and mask(peer.text) != peer.text for context in contexts for peer in context.peers)
        out.append(Asked(group, success, counted, prompts, mask is not None, answers))
    return out


def _masked(context: peers.PeerContext, mask: Callable[[str], str]) -> peers.PeerContext:
    def without(shown: Sequence[peers.Peer]) -> tuple[peers.Peer, ...]:
        return tuple(replace(peer, text=mask(peer.text)) for peer in shown)

    return replace(context, successes=without(context.successes), failures=without(context.failures))


def _rendered(
    group: Group, contexts: Sequence[peers.PeerContext], settings: Any, chat: Chat, *, always: bool = False
) -> list[np.ndarray | None]:
    """Return the prompts of the contexts; None for one that shows nothing, unless `always`."""
    memo: dict[tuple, peers.TeacherPrompt] = {}
    for context in contexts:
        if context.key not in memo:
            memo[context.key] = peers.render(group.prompt, context, settings, chat)
    prompts = [memo[context.key] for context in contexts]
    return [prompt.token_ids if always or prompt.shown else None for prompt in prompts]


def scores(asked: Sequence[Asked], student: Score, teacher: Score) -> list[Read]:
    """Score every response once behind each prompt it is read with; `student is teacher` where both are one model still.

    Equal responses of a group are scored once: apart they would differ in their last bits, and no longer be tied. The
    scorers take samples whose `context_ids` are what is to be read, and whose `group` counts `asked`.
    """
    wanted: dict[tuple[int, bytes, bytes], Sample] = {}
    plain: dict[tuple[int, bytes, bytes], Sample] = {}

    def sample(g: int, i: int, prompt: np.ndarray, into: dict) -> tuple[int, bytes, bytes]:
        key = g, asked[g].group.rollouts[i].token_ids.tobytes(), prompt.tobytes()
        into.setdefault(key, Sample.of(asked[g].group, g, i, context_ids=prompt))
        return key

    keys: dict[tuple[int, str, int], tuple[int, bytes, bytes]] = {}
    for g, one in enumerate(asked):
        for i in np.flatnonzero(one.counted):
            sample(g, int(i), one.prompts["base"][i], plain)
            for name, prompts in one.prompts.items():
                if prompts[i] is not None:
                    keys[g, name, int(i)] = sample(g, int(i), prompts[i], wanted)
    if not wanted:
        return []
    by_teacher = dict(zip(wanted, teacher(list(wanted.values())), strict=True))
    by_student = by_teacher if student is teacher else dict(zip(plain, student(list(plain.values())), strict=True))
    read = []
    for g, one in enumerate(asked):
        found = {kind: {name: np.full(len(one.success), np.nan) for name in one.prompts} for kind in ("teacher", "gap")}
        for name in one.prompts:
            for i in map(int, np.flatnonzero(one.counted)):
                if (g, name, i) in keys:
                    said = by_teacher[keys[g, name, i]]
                    found["teacher"][name][i] = said.mean(dtype=np.float64)
                    found["gap"][name][i] = (said - by_student[keys[g, "base", i]]).mean(dtype=np.float64)
        read.append(Read(one, found["teacher"], found["gap"]))
    return read


# ---- what the scores say ----


def report(read: Sequence[Read], config: Config) -> dict[str, Any]:
    """Return AUCs by context, their paired differences and the leak share; what is not defined is None, with a reason."""
    bootstrap, seed = signal.Bootstrap(RESAMPLES, config.data.seed), config.data.seed
    by_name = {name: np.array([_auc(one.gap[name], one.asked.success) for one in read]) for name in CONTEXTS}
    of_teacher = {name: np.array([_auc(one.teacher[name], one.asked.success) for one in read]) for name in CONTEXTS}
    means = {name: {"gap": _mean(by_name[name], bootstrap), "teacher": _mean(of_teacher[name], bootstrap)} for name in CONTEXTS}
    pairs = {f"{a} to {b}": signal.paired(by_name[a], by_name[b], bootstrap) for a, b in PAIRS}
    bootstrap.fill()
    maskable = [one for one in read if one.asked.maskable]
    without = sorted({one.asked.group.prompt.data_source for one in read if not one.asked.maskable})
    return {
        "groups": len(read),
        "own_teacher": config.actor_rollout_ref.ref.model.path is None,
        "auc": {name: {kind: _plain(*found) for kind, found in kinds.items()} for name, kinds in means.items()},
        "pairs": {
            name: {"prompts": d.prompts, "mean": d.mean, "interval": d.interval, "higher": d.higher, "lower": d.lower, "p": d.p}
            for name, d in pairs.items()
        },
        "leak": {**leak(maskable, seed), "without_answer": without},
    }


def _auc(scores: np.ndarray, success: np.ndarray) -> float:
    there = ~np.isnan(scores)
    return auc(scores[there], success[there])


def _mean(values: np.ndarray, bootstrap: signal.Bootstrap) -> tuple[np.ndarray, list]:
    defined = values[~np.isnan(values)]
    return defined, bootstrap.ask(defined)


def _plain(values: np.ndarray, interval: list) -> dict[str, Any]:
    return {"mean": float(values.mean()) if len(values) else None, "interval": interval, "groups": len(values)}


def advantage(gap: np.ndarray, success: np.ndarray, there: np.ndarray) -> float:
    """Return the mean gap of successes minus that of failures among the responses `there` [n]; NaN unless it holds both."""
    passed, failed = gap[there & success], gap[there & ~success]
    return float(passed.mean() - failed.mean()) if len(passed) and len(failed) else float("nan")


def leak(read: Sequence[Read], seed: int) -> dict[str, Any]:
    """Return the leak share of groups whose source has final answers, and what it was made of."""
    pairs = []
    for one in read:
        there = ~np.isnan(one.gap[OWN]) & ~np.isnan(one.gap[MASKED])
        pairs.append([advantage(one.gap[name], one.asked.success, there) for name in (OWN, MASKED)])
    found = np.array(pairs).reshape(-1, 2)
    found = found[~np.isnan(found).any(1)]
    answers = sum(one.asked.answers for one in read)
    out = {
        "groups": len(found),
        "share": None,
        "interval": [None, None],
        "advantage": None,
        "masked": None,
        "answers": answers,
        "why": None,
    }
    if not len(read):
        return out | {"why": "no group with both verdicts is of a source with a final answer"}
    if len(found) < 2:
        return out | {"why": "fewer than two groups have both verdicts among the rollouts that are shown peers"}
    if not answers:
        return out | {"why": "no peer shown holds an answer that the verifier reads"}
    out |= {"advantage": float(found[:, 0].mean()), "masked": float(found[:, 1].mean())}
    share, low, high = leak_share(found[:, 0], found[:, 1], seed)
    if share is None:
        return out | {"why": "the teacher has no advantage to speak of: over prompts its interval reaches 0"}
    return out | {"share": share, "interval": [low, high]}


def leak_share(whole: np.ndarray, masked: np.ndarray, seed: int) -> tuple[float | None, float | None, float | None]:
    """Return 1 - mean(masked) / mean(whole) with its 95 % bootstrap interval over groups; None where `whole` may be 0.

    Args:
        whole, masked: the advantage of each group with and without the peers' answers, [G].
    """
    rng = generator(seed, "leak", len(whole))
    drawn = rng.integers(len(whole), size=(RESAMPLES, len(whole)))
    top, below = masked[drawn].mean(1), whole[drawn].mean(1)
    if np.quantile(below, 0.025) <= 0:
        return None, None, None
    kept = below > 0  # of the rest, at most one draw in forty, no share is defined
    low, high = np.quantile(1 - top[kept] / below[kept], (0.025, 0.975))
    return float(1 - masked.mean() / whole.mean()), float(low), float(high)


def budget(steps: Sequence[Step], config: Config, chat: Chat) -> dict[str, Any]:
    """Return what `max_reprompt_len` takes of the teacher's prompts under the run's own contexts, over all rollouts that have one."""
    shown = cut = dropped = peer_tokens = lost = 0
    lengths: list[int] = []
    distill = config.actor_rollout_ref.actor.self_distillation
    for step in steps:
        for g, group in enumerate(step.groups):
            memo: dict[tuple, tuple[peers.TeacherPrompt, int]] = {}
            for i in range(len(group.rollouts)):
                context = step.batch.contexts[g, i]
                if context.empty:
                    continue
                if context.key not in memo:
                    told = [*(peer.text for peer in context.peers), *([context.feedback] if context.feedback else [])]
                    tokens = sum(len(chat.encode(text)) for text in told)
                    memo[context.key] = peers.render(group.prompt, context, distill, chat), tokens
                prompt, tokens = memo[context.key]
                shown += 1
                cut += bool(prompt.cuts)
                dropped += any(c.kept == 0 for c in prompt.cuts)
                peer_tokens += tokens
                lost += sum(c.tokens - c.kept for c in prompt.cuts)
                lengths.append(len(prompt.token_ids))
    return {
        "prompts": shown,
        "most_tokens": distill.max_reprompt_len,
        "tokens": {"mean": float(np.mean(lengths)), "max": max(lengths)} if lengths else None,
        "cut": cut / shown if shown else None,
        "dropped": dropped / shown if shown else None,
        "tokens_cut": lost / peer_tokens if peer_tokens else None,
    }


def figures(asked: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the numbers the verdicts judge; None where there is no teacher, or nothing to tell."""
    if asked is None:
        return dict.fromkeys(("teacher_groups", "auc_low", "auc_high", "leak_share", "prompts_cut"))
    own = asked["auc"][OWN]["gap"]
    low, high = own["interval"]
    return {
        "teacher_groups": own["groups"],
        "auc_low": low,
        "auc_high": high,
        "leak_share": asked["leak"]["share"],
        "prompts_cut": asked["budget"]["cut"],
    }
