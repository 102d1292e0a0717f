"""How the teacher's prompt reads: question, peers, feedback and closing line in the chat frame, within a budget.

The budget is `max_reprompt_len` tokens. System message, question, section headers, closing line, chat frame and
assistant header are never cut. When the whole does not fit,

1. peers beyond the first success and the first failure are dropped whole: later successes first, then later failures;
2. what is left shares the remaining tokens equally (what one does not need goes to the others), each text cut in
   its middle with a mark, so that its beginning and its final answer stay;
3. if a share gets too small to say anything, the failure goes, then the feedback, then the success.

When nothing is cut the text is the published one, byte for byte (behaviour 4.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.chat import Chat
from trainer.config.schema import SelfDistillation
from trainer.peers.select import PeerContext
from trainer.types import Prompt

CUT_MARK = "\n[...]\n"
MIN_SHARE = 16  # tokens below which a cut text is dropped instead


@dataclass(frozen=True)
class Cut:
    """What the budget took: `tokens` of the text of `role` before, `kept` after (0: dropped whole)."""

    role: str
    index: int
    tokens: int
    kept: int


@dataclass(frozen=True, eq=False)
class TeacherPrompt:
    """The rendered prompt: `token_ids` int32 [C], its text, the roles that are really in it, and what was cut.

    `markers` counts the special tokens spelled out in peers or feedback; they are broken so that they end no turn.
    """

    token_ids: np.ndarray
    cuts: tuple[Cut, ...]
    text: str
    shown: tuple[str, ...]
    markers: int = 0


@dataclass(frozen=True)
class _Section:
    role: str  # primary, another, failure, feedback
    index: int
    text: str


def render(prompt: Prompt, context: PeerContext, config: SelfDistillation, tokenizer: Chat | Any) -> TeacherPrompt:
    """Return the teacher's prompt for a context, at most `config.max_reprompt_len` tokens long.

    Args:
        tokenizer: a `Chat` (the tokenizer with the run's template arguments), or a plain tokenizer.

    Raises:
        ValueError: if the frame with the question alone exceeds the budget; names the uid and both lengths.
    """
    chat, budget = Chat.of(tokenizer), config.max_reprompt_len
    said = [(peer.role, peer.index, peer.text) for peer in context.peers]
    if context.feedback is not None:
        said.append(("feedback", context.index, context.feedback))
    whole, markers = [], 0
    for role, index, told in said:
        harmless, found = chat.without_markers(told)
        whole.append(_Section(role, index, harmless))
        markers += found

    def attempt(sections: Sequence[_Section]) -> tuple[str, np.ndarray]:
        text = chat.text(_messages(prompt, sections, config))
        return text, chat.encode(text)

    kept = list(whole)
    text, ids = attempt(kept)
    while len(ids) > budget and (extra := _least_needed(kept)) is not None:
        kept.remove(extra)
        text, ids = attempt(kept)
    if len(ids) > budget:
        kept, text, ids = _cut_to_share(kept, attempt, chat, budget)
    if len(ids) > budget:
        raise ValueError(
            f"prompt {prompt.uid!r}: the question in its frame takes {len(ids)} tokens, more than max_reprompt_len={budget}; "
            "raise max_reprompt_len or lower data.max_prompt_length"
        )
    return TeacherPrompt(token_ids=ids, cuts=_cuts(whole, kept, chat), text=text, shown=tuple(s.role for s in kept), markers=markers)


def _messages(prompt: Prompt, sections: Sequence[_Section], config: SelfDistillation) -> list[Mapping[str, str]]:
    """Return the prompt's messages with the last one, the user's, carrying the sections. None: the plain prompt."""
    *before, last = prompt.messages
    if not sections:
        return [*before, last]
    filled = {"solution": "", "another_solution": "", "failure": "", "feedback": ""}
    templates = {
        "primary": ("solution", config.solution_template, "successful_previous_attempt"),
        "another": ("another_solution", config.another_solution_template, "another_successful_attempt"),
        "failure": ("failure", config.failure_solution_template, "failed_attempt"),
        "feedback": ("feedback", config.feedback_template, "feedback_raw"),
    }
    for section in sections:
        slot, template, placeholder = templates[section.role]
        filled[slot] += template.format(**{placeholder: section.text})
    return [*before, {**last, "content": config.reprompt_template.format(prompt=last["content"], **filled)}]


def _least_needed(sections: Sequence[_Section]) -> _Section | None:
    """Return the peer to drop whole next: a success after the first, then a failure after the first; else None."""
    successes = [s for s in sections if s.role in ("primary", "another")]
    failures = [s for s in sections if s.role == "failure"]
    for line in (successes, failures):
        if len(line) > 1:
            return line[-1]
    return None


def _cut_to_share(kept, attempt, chat: Chat, budget: int):
    """Cut the sections' texts in their middles to an equal share of what the frame leaves; drop them if it is too small."""
    last_in_line = ("primary", "another", "feedback", "failure")
    while kept:
        lengths = [len(chat.encode(section.text)) for section in kept]
        room = budget - len(attempt([replace(section, text="") for section in kept])[1])
        while (share := _share(lengths, room)) >= min(MIN_SHARE, max(lengths)):
            cut = [replace(section, text=_cut_middle(section.text, share, chat)) for section in kept]
            text, ids = attempt(cut)
            if len(ids) <= budget:
                return cut, text, ids
            room -= len(ids) - budget  # tokens merge differently in place than alone
        kept = sorted(kept, key=lambda section: last_in_line.index(section.role))[:-1]
    return kept, *attempt(kept)


def _share(lengths: Sequence[int], room: int) -> int:
    """Return the largest c with sum(min(length, c)) <= room: equal shares, unused tokens passed on."""
    waiting = sorted(lengths)
    while waiting:
        share = room // len(waiting)
        if waiting[0] > share:
            return share
        room -= waiting.pop(0)
    return max(lengths, default=0)


def _cut_middle(text: str, tokens: int, chat: Chat) -> str:
    """Return `text` if it has at most `tokens` tokens, else its beginning and end around a mark, about that long."""
    encoded = chat.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    if len(offsets) <= tokens:
        return text
    room = max(tokens - len(chat.encode(CUT_MARK)), 0)
    head, tail = room - room // 2, room // 2
    start = offsets[head - 1][1] if head else 0
    end = offsets[len(offsets) - tail][0] if tail else len(text)
    return text[:start] + CUT_MARK + text[end:]


def _cuts(whole: Sequence[_Section], kept: Sequence[_Section], chat: Chat) -> tuple[Cut, ...]:
    left = {(section.role, section.index): section.text for section in kept}
    cuts = []
    for section in whole:
        text = left.get((section.role, section.index))
        if text != section.text:
            kept_tokens = len(chat.encode(text)) if text is not None else 0
            cuts.append(Cut(section.role, section.index, len(chat.encode(section.text)), kept_tokens))
    return tuple(cuts)
