"""What `analysis.inspect` shows of a step: whom the teacher saw, and what student and teacher make of every token.

The rollouts are those of the step's dump; peers are selected and rendered by the trainer's own code, with the run's seed
and settings, and compared with those the dump names. Student and teacher are scored by the forest at the run's temperature:
the student behind the plain prompt, the teacher behind its prompt with every choice of its parts switched on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from analysis import reader, runs
from analysis.groups import messages_of
from analysis.reader import Reader
from analysis.rows import Fields, Row, read_jsonl, require
from analysis.runs import Run
from analysis.scoring import ForestScorer, Pair
from trainer import forest, fused, peers
from trainer.attention import plan_attention
from trainer.chat import Chat
from trainer.errors import UserError
from trainer.fused import Head
from trainer.peers import PeerContext, TeacherPrompt
from trainer.types import Group, Outcome, Prompt, Rollout, Verdict

ALL_CHOICES = 4  # parts of a context of which every choice is scored; of more: all, all but one, none
DUMPED: Fields = {
    "uid": str,
    "prompt_index": int,
    "rollout_index": int,
    "data_source": str,
    "messages": list,
    "output": str,
    "response_ids": list,
    "finished": bool,
    "score": float,
    "acc": float,
    "outcome": str,
    "feedback": str,
    "peers": list,
}


@dataclass(frozen=True)
class Weights:
    """Who scores: student and teacher, whose weights of the teacher's folder ("ema" or "student"), and what to say of it."""

    student: Reader
    teacher: Reader
    of_teacher: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model makes of a response, at the run's temperature, in nats.

    `logp` float32 [T] of its tokens; `top_ids` int32 and `top_logp` float32 [T, K], the K likeliest words, falling.
    """

    logp: np.ndarray
    top_ids: np.ndarray
    top_logp: np.ndarray


@dataclass(frozen=True, eq=False)
class Part:
    """What can be switched off in a teacher's prompt: a peer (`index` is its place in the group), or the rollout's feedback."""

    role: str
    index: int
    text: str


@dataclass(frozen=True, eq=False)
class Variant:
    """The teacher's prompt with the parts in `mask` (bit i: part i) and what the teacher makes of the response behind it."""

    mask: int
    prompt: TeacherPrompt
    seen: Seen


@dataclass(frozen=True, eq=False)
class View:
    """One rollout: the parts of its context, what the student makes of it, and the teacher, the whole context first."""

    parts: tuple[Part, ...]
    student: Seen
    variants: tuple[Variant, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """The groups of a step as they were trained on, with the contexts of their rollouts."""

    number: int
    groups: Sequence[Group]
    contexts: Sequence[Sequence[PeerContext]]
    notes: tuple[str, ...] = field(default=())


# ---- the step and the weights


def find_weights(run: Run, step: int, model: str | None = None, teacher_model: str | None = None) -> Weights:
    """Return who scores the rollouts of a step: `model` and `teacher_model`, else the run's weights nearest to that step's.

    Rollouts of step N were sampled, and scored by the teacher, with the weights after step N - 1. Raises UserError if the
    run has no checkpoint, naming what there is.
    """
    notes = []
    if model is not None:
        student = reader.find(model)
        notes.append(f"student: {student.path}")
    else:
        student, note = _nearest(run, step)
        notes.append(f"student: {note}")
    if teacher_model is not None:
        teacher = reader.find(teacher_model)
        of_teacher = reader.weights_of(teacher, None)
        notes.append(f"teacher: {teacher.path}" + (" (its EMA teacher)" if of_teacher == "ema" else ""))
    else:
        found = runs.teacher_of(run, student)
        teacher, of_teacher = found.reader, found.weights
        notes.append(f"teacher: {found.what}")
    return Weights(student, teacher, of_teacher, tuple(notes))


def _nearest(run: Run, step: int) -> tuple[Reader, str]:
    """Return the checkpoint whose weights are nearest to those that sampled a step, and what it is, in words."""
    sampled_by, initial = step - 1, run.config.actor_rollout_ref.model.path
    whole = run.weights()
    if not whole or (set(whole) == {0} and sampled_by):  # the weights it began with are near its first step alone
        raise UserError(
            f"{run.checkpoints}: no whole checkpoint of the run {run.name!r} is there{run.broken()}, so there are no weights near step "
            f"{step}. --model FOLDER says which weights score; the run began with {initial}. "
            f"(trainer.save_freq={run.config.trainer.save_freq}.)"
        )
    number = min(whole, key=lambda n: (abs(n - sampled_by), n))
    what = "the weights the run began with" if number == 0 and whole[0] == Path(initial) else str(whole[number])
    if number == sampled_by:
        return run.student(number), f"{what}, which sampled these rollouts"
    apart = abs(number - sampled_by)
    side = "before" if number < sampled_by else "after"
    return run.student(number), f"{what}, {apart} step{'s' * (apart > 1)} {side} the weights that sampled these rollouts"


def read_step(run: Run, step: int, chat: Chat, prompts: int | None = None) -> Step:
    """Return the first `prompts` groups of a step and what their teachers saw, selected as in training.

    Raises UserError if the step was not dumped, if the dump lacks what an older version did not write, if its tokens are not
    those of `chat`, or if the run's settings give other peers than the dump names.
    """
    path = run.rollouts / f"{step}.jsonl"
    if not path.is_file():
        there = runs.dumped(run.rollouts)
        held = (
            f"it holds steps {runs.ranges(there)}" if there else "it holds no step" if run.rollouts.is_dir() else "there is no such folder"
        )
        raise UserError(f"{path}: step {step} was not dumped; {held}.")
    by_prompt: dict[str, list[tuple[str, Row]]] = {}
    for where, row in read_jsonl(path):
        lacking = [name for name in ("messages", "response_ids") if name not in row]
        if lacking:
            raise UserError(
                f"{where}: has no {' and no '.join(lacking)}: an older version dumped this run. What its tokens were cannot be told from "
                "the text; train a few steps again with this version and inspect those."
            )
        _require(row, where)
        if row["uid"] not in by_prompt and len(by_prompt) == prompts:
            continue
        by_prompt.setdefault(row["uid"], []).append((where, row))
    distill, seed = run.config.actor_rollout_ref.actor.self_distillation, run.config.data.seed
    groups = [_group(rows, chat) for rows in by_prompt.values()]
    contexts = [peers.select(group, distill, seed=seed, step=step) for group in groups]
    notes = []
    if run.config.actor_rollout_ref.actor.policy_loss.loss_mode == "sdpo":
        for rows, chosen in zip(by_prompt.values(), contexts, strict=True):
            _check_peers(rows, chosen)
    else:
        notes.append("this run had no teacher: what is shown is what a teacher would have been shown")
    return Step(step, groups, contexts, tuple(notes))


def _require(row: Row, where: str) -> None:
    require(row, where, DUMPED)
    if row["outcome"] not in set(Outcome):
        raise UserError(f"{where}: field 'outcome' is {row['outcome']!r}; known are {', '.join(Outcome)}.")


def _group(rows: Sequence[tuple[str, Row]], chat: Chat) -> Group:
    where, first = rows[0]
    rollouts, verdicts = [], []
    for place, (here, row) in enumerate(rows):
        if row["rollout_index"] != place:
            raise UserError(f"{here}: rollout_index is {row['rollout_index']} where {place} is next: the file lacks rows of this group.")
        ids = row["response_ids"]
        if not all(type(i) is int and 0 <= i < len(chat.tokenizer) for i in ids) or chat.decode(ids) != row["output"]:
            raise UserError(
                f"{here}: its response_ids do not read as its output with this model's tokenizer: --model names another model's."
            )
        rollouts.append(Rollout(row["output"], np.asarray(ids, np.int32), finished=row["finished"]))
        said = {"pred": str(row.get("pred") or ""), "feedback": row["feedback"], "incorrect_format": bool(row.get("incorrect_format"))}
        verdicts.append(Verdict(Outcome(row["outcome"]), float(row["score"]), float(row["acc"]), **said))
    messages = messages_of(first, where)
    prompt = Prompt(
        first["uid"],
        first["data_source"],
        messages,
        ground_truth="" if first.get("gts") is None else str(first["gts"]),
        index=first["prompt_index"],
        token_ids=chat.prompt_ids(messages),
    )
    return Group(prompt, rollouts, verdicts)


def _check_peers(rows: Sequence[tuple[str, Row]], contexts: Sequence[PeerContext]) -> None:
    for (where, row), context in zip(rows, contexts, strict=True):
        given = [{"role": peer.role, "rollout_index": peer.index} for peer in context.peers]
        if row["peers"] != given:
            named = [", ".join(f"{peer['role']} {peer['rollout_index']}" for peer in shown) or "nobody" for shown in (row["peers"], given)]
            raise UserError(
                f"{where}: the teacher of this rollout was shown {named[0]}; with the run's settings it is {named[1]}. The settings have "
                "changed since that step: --set key=value gives those it was trained with (include_*, num_*_peers, data.seed...)."
            )


# ---- what is scored


def parts_of(context: PeerContext) -> tuple[Part, ...]:
    """Return what of a context can be switched off, in the order in which the prompt shows it."""
    shown = [Part(peer.role, peer.index, peer.text) for peer in context.peers]
    if context.feedback is not None:
        shown.append(Part("feedback", context.index, context.feedback))
    return tuple(shown)


def masks(parts: int) -> list[int]:
    """Return which choices of so many parts are scored: all parts first, none last, every other or all but one between."""
    whole = (1 << parts) - 1
    if parts <= ALL_CHOICES:
        return list(range(whole, -1, -1))
    return [whole, *(whole & ~(1 << part) for part in range(parts)), 0]


def choose(context: PeerContext, mask: int) -> PeerContext:
    """Return a context with the parts in `mask` alone; each keeps its role."""
    kept = [peer for place, peer in enumerate(context.peers) if mask >> place & 1]
    return replace(
        context,
        successes=tuple(peer for peer in kept if peer in context.successes),
        failures=tuple(peer for peer in kept if peer in context.failures),
        feedback=context.feedback if mask >> len(context.peers) & 1 else None,
    )


class Looker(ForestScorer):
    """Scores as the forest scores, and keeps the likeliest words beside: [T, V] never exists for more than one chunk."""

    def __init__(self, lm: nn.Module, *, top: int, temperature: float = 1.0, device: str = "cpu", max_tokens: int = 16384) -> None:
        super().__init__(lm, device=device, max_tokens=max_tokens)
        self.top, self.temperature = top, temperature

    @torch.no_grad()
    def look(self, pairs: Sequence[Pair]) -> list[Seen]:
        """Return what the model makes of each response behind its context, in order; responses may be empty."""
        seen = [Seen(np.empty(0, np.float32), np.empty((0, self.top), np.int32), np.empty((0, self.top), np.float32))] * len(pairs)
        told = [i for i, (_, response) in enumerate(pairs) if len(response)]
        for batch in self.batches([pairs[i] for i in told]) if told else []:
            chosen = [told[i] for i in batch]
            for i, one in zip(chosen, self._look([pairs[i] for i in chosen]), strict=True):
                seen[i] = one
        return seen

    def _look(self, pairs: Sequence[Pair]) -> list[Seen]:
        packed = forest.build(pairs)
        targets = torch.from_numpy(np.concatenate([response for _, response in pairs]).astype(np.int64)).to(self.device)

        def then(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
            logp, ids, top_logp = [], [], []
            for rows in fused.chunks(len(hidden), fused.default_chunk(head.words)):
                logits = head.logits(hidden[rows], self.temperature)
                norm = logits.logsumexp(-1, keepdim=True)
                values, words = logits.topk(self.top, -1)
                logp.append((logits.gather(-1, targets[rows, None]) - norm).squeeze(-1))
                ids.append(words)
                top_logp.append(values - norm)
            return torch.cat(logp), torch.cat(ids), torch.cat(top_logp)

        self.computed += len(packed.token_ids)
        logp, ids, top_logp = (part.cpu().numpy() for part in self.model(packed, plan_attention(packed, self.device), then))
        if not np.isfinite(logp).all():
            raise UserError("log-probs come out as NaN or infinite: these weights do not work in this dtype; take another --dtype.")
        ends = np.cumsum(packed.row_counts)[:-1]
        columns = (
            np.split(logp.astype(np.float32), ends),
            np.split(ids.astype(np.int32), ends),
            np.split(top_logp.astype(np.float32), ends),
        )
        return [Seen(*one) for one in zip(*columns, strict=True)]


def student_views(step: Step, looker: Looker) -> Iterator[list[Seen]]:
    """Yield, group by group, what the student makes of each rollout behind the plain prompt."""
    for group in step.groups:
        yield looker.look([(group.prompt.token_ids, rollout.token_ids) for rollout in group.rollouts])


def views(step: Step, students: Sequence[Sequence[Seen]], looker: Looker, chat: Chat, run: Run) -> Iterator[list[View]]:
    """Yield, group by group, the views of its rollouts: the teacher behind every choice of the parts it was shown."""
    distill = run.config.actor_rollout_ref.actor.self_distillation
    for group, contexts, seen in zip(step.groups, step.contexts, students, strict=True):
        memo: dict[tuple, TeacherPrompt] = {}
        wanted: list[tuple[int, int, TeacherPrompt]] = []
        for i, context in enumerate(contexts):
            for mask in masks(len(parts_of(context))):
                chosen = choose(context, mask)
                if chosen.key not in memo:
                    memo[chosen.key] = peers.render(group.prompt, chosen, distill, chat)
                wanted.append((i, mask, memo[chosen.key]))
        told = looker.look([(prompt.token_ids, group.rollouts[i].token_ids) for i, _, prompt in wanted])
        variants: list[list[Variant]] = [[] for _ in contexts]
        for (i, mask, prompt), one in zip(wanted, told, strict=True):
            variants[i].append(Variant(mask, prompt, one))
        yield [View(parts_of(context), seen[i], tuple(variants[i])) for i, context in enumerate(contexts)]
