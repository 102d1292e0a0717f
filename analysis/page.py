"""The page of `analysis.inspect`: one HTML file that holds everything, each group and each rollout packed for itself.

A group's texts are a JSON object, a rollout's numbers little-endian arrays one after the other; both are compressed (zlib)
and written as base64, and the page unpacks them when they are looked at. Word ids stand as places in the page's list of
words. A rollout of T tokens, V variants and K likeliest words holds, in this order:

    places (uint16, uint32 if a place needs it)  tokens [T], student's top [T, K], teacher's top [V, T, K]
    log-probs (float16, nats)                    student [T], student's top [T, K], teacher [V, T], teacher's top [V, T, K]
"""

import base64
import html
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.view import Seen, View
from trainer.chat import Chat
from trainer.types import Group, Rollout

TEMPLATE = Path(__file__).with_name("inspect.html")
EDGES = (-3.0, -1.0, -0.3, -0.1, 0.1, 0.3, 1.0, 3.0)  # of the colours, in nats of teacher less student
BEGINNING = 90  # characters of a question in the list of prompts


def colour_of(ratio: np.ndarray) -> np.ndarray:
    """Return the colour, int64 0..len(EDGES), of log-ratios (teacher less student, nats); the page does the same."""
    return np.digitize(ratio, EDGES)


class Words:
    """The words that occur in a page, each once; a word's place is where its id first occurred."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}

    def place(self, ids: np.ndarray) -> np.ndarray:
        """Return the places of ids, of the same shape, int64."""
        distinct, inverse = np.unique(ids, return_inverse=True)
        found = np.asarray([self.places.setdefault(int(i), len(self.places)) for i in distinct], np.int64)
        return found[inverse].reshape(ids.shape) if ids.size else np.empty(ids.shape, np.int64)

    def texts(self, chat: Chat) -> list[str]:
        """Return what each word reads, special tokens spelled out; a space that a word begins with is kept."""
        ids = list(self.places)
        pieces = chat.tokenizer.convert_ids_to_tokens(ids)
        texts = [chat.tokenizer.decode([i], skip_special_tokens=False, clean_up_tokenization_spaces=False) for i in ids]
        told = zip(ids, pieces, texts, strict=True)
        return [f"<{i}>" if p is None else f" {t}" if p.startswith("▁") and not t.startswith(" ") else t for i, p, t in told]


class Page:
    """A page in the making: groups are added one by one, so that their arrays need not stay."""

    def __init__(self, title: str, *, step: int, temperature: float, top: int, threshold: float, notes: Sequence[str]) -> None:
        self.words, self.blobs, self.groups = Words(), [], []
        self.about: dict[str, Any] = {
            "title": title,
            "step": step,
            "temperature": temperature,
            "top": top,
            "threshold": threshold,
            "notes": list(notes),
            "edges": EDGES,
        }

    def add(self, group: Group, views: Sequence[View]) -> None:
        """Add a group with the views of its rollouts."""
        g, strings = len(self.groups), Strings()
        rollouts, details = [], []
        for i, (rollout, verdict, view) in enumerate(zip(group.rollouts, group.verdicts, views, strict=True)):
            numbers, wide = pack(rollout, view, self.words)
            self.blobs.append((f"rollout-{g}-{i}", numbers))
            whole = view.variants[0]
            rollouts.append(
                {
                    "outcome": str(verdict.outcome),
                    "reward": verdict.reward,
                    "acc": verdict.acc,
                    "finished": rollout.finished,
                    "tokens": len(rollout.token_ids),
                    "wide": wide,
                    "mean": _mean(view.student, whole.seen),
                }
            )
            details.append(
                {
                    "pred": verdict.pred,
                    "feedback": strings.place(verdict.feedback),
                    "parts": [{"role": part.role, "index": part.index, "text": strings.place(part.text)} for part in view.parts],
                    "variants": [
                        {
                            "mask": variant.mask,
                            "prompt": strings.place(variant.prompt.text),
                            "length": len(variant.prompt.token_ids),
                            "cuts": [
                                {"role": cut.role, "index": cut.index, "tokens": cut.tokens, "kept": cut.kept}
                                for cut in variant.prompt.cuts
                            ],
                        }
                        for variant in view.variants
                    ],
                }
            )
        question = group.prompt.messages[-1]["content"]
        self.groups.append(
            {"uid": group.prompt.uid, "source": group.prompt.data_source, "begins": question[:BEGINNING], "rollouts": rollouts}
        )
        held = {"messages": list(group.prompt.messages), "answer": group.prompt.ground_truth, "rollouts": details, "strings": strings.told}
        self.blobs.append((f"group-{g}", json.dumps(held, ensure_ascii=False).encode()))

    def html(self, chat: Chat) -> str:
        """Return the page."""
        about = self.about | {"words": self.words.texts(chat), "groups": self.groups}
        parts = {"title": html.escape(self.about["title"]), "page": in_script(about), "blobs": "\n".join(_tags(self.blobs))}
        return re.sub(r"@@(\w+)@@", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))


class Strings:
    """Texts of a group, each once."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.places: dict[str, int] = {}

    def place(self, text: str) -> int:
        """Return the place of a text in `told`."""
        if text not in self.places:
            self.places[text] = len(self.told)
            self.told.append(text)
        return self.places[text]


def pack(rollout: Rollout, view: View, words: Words) -> tuple[bytes, bool]:
    """Return a rollout's numbers as laid out above, and whether its places take four bytes."""
    teachers = [variant.seen for variant in view.variants]
    ids = [rollout.token_ids, view.student.top_ids, *(seen.top_ids for seen in teachers)]
    places = words.place(np.concatenate([part.reshape(-1) for part in ids]))
    wide = bool(places.size and places.max() >= 1 << 16)
    logps = [view.student.logp, view.student.top_logp, *(seen.logp for seen in teachers), *(seen.top_logp for seen in teachers)]
    numbers = np.concatenate([part.reshape(-1) for part in logps])
    return places.astype("<u4" if wide else "<u2").tobytes() + numbers.astype("<f2").tobytes(), wide


def in_script(value: Any) -> str:
    """Return JSON that can stand in a script element: nothing in it opens or closes a tag."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _tags(blobs: Iterable[tuple[str, bytes]]) -> Iterator[str]:
    for name, content in blobs:
        yield f'<script type="text/plain" id="{name}">{base64.b64encode(zlib.compress(content, 9)).decode()}</script>'


def _mean(student: Seen, teacher: Seen) -> float | None:
    """Return the mean log-ratio of a response, None if it has no token."""
    return round(float((teacher.logp - student.logp).mean(dtype=np.float64)), 4) if len(student.logp) else None
