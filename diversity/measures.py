"""How different the texts of a set are from each other: pure functions, None where a set has nothing to compare.

Self-BLEU, distances and distinct-n count the same tokens: identifiers, runs of digits, and single other characters
(behaviour 9); blanks are no tokens. Definitions and how they differ from the published ones: docs/diversity.md.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rapidfuzz.distance import Indel
from sacrebleu.metrics.bleu import BLEU

ORDERS = 4
SMOOTHING = "exp"  # sacreBLEU's own default: the k-th order without a match counts as half of the one before it
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|\S")

Tokens = Sequence[str]


def tokenize(text: str) -> list[str]:
    """Return the identifiers, runs of digits and single other characters of a text, without blanks."""
    return _TOKEN.findall(text)


def bleu_signature() -> str:
    """Return what sacreBLEU asks to be quoted beside a score; its tokens are those of `tokenize`."""
    return f"sacreBLEU:nrefs:var|case:mixed|eff:yes|tok:mopd|smooth:{SMOOTHING}|order:{ORDERS}"


@dataclass(frozen=True, eq=False)
class NGrams:
    """The n-grams of one order: for each pair of a text and an n-gram in it both numbers, and how often; int64 [P] each."""

    text: np.ndarray
    gram: np.ndarray
    count: np.ndarray

    def most_elsewhere(self) -> np.ndarray:
        """Return for each pair how often the n-gram is in the one other text that has it most often, int64 [P]."""
        if not len(self.gram):
            return self.count
        order = np.lexsort((-self.count, self.gram))  # by n-gram, the text that has it most often first
        gram, count = self.gram[order], self.count[order]
        follows = np.append(gram[1:] == gram[:-1], False)  # the next pair is about the same n-gram
        first = np.append(True, ~follows[:-1])
        second_most = np.where(follows, np.append(count[1:], 0), 0)
        most = count[first][np.cumsum(first) - 1]
        elsewhere = np.empty_like(count)
        elsewhere[order] = np.where(first, second_most, most)
        return elsewhere


def ngrams(texts: Sequence[Tokens], orders: int) -> Iterator[NGrams]:
    """Yield the n-grams of order 1, 2 .. `orders`; none reaches from one text into the next."""
    numbers: dict[str, int] = {}
    tokens = np.array([numbers.setdefault(token, len(numbers)) for text in texts for token in text], np.int64)
    text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    start, gram = np.arange(len(tokens)), tokens
    for order in range(1, orders + 1):
        if order > 1:  # an n-gram is a shorter one and the token after it, if that is of the same text
            after = start + order - 1
            inside = after < len(tokens)
            inside[inside] = text[start[inside]] == text[after[inside]]
            start, gram = start[inside], gram[inside]
            _, gram = np.unique(gram * len(numbers) + tokens[start + order - 1], return_inverse=True)
        pairs, count = np.unique(gram * len(texts) + text[start], return_counts=True)
        yield NGrams(pairs % max(len(texts), 1), pairs // max(len(texts), 1), count)


def self_bleu(texts: Sequence[Tokens]) -> float | None:
    """Return the mean over texts of BLEU-4 of a text against all others, in [0, 1]: the lower, the more diverse.

    sacreBLEU's sentence-level score: closest reference length (of two the shorter), effective order, `SMOOTHING`. Counts
    are taken once for all texts, not once a pair. Texts without a token are left out; None for fewer than two others.
    """
    texts = [text for text in texts if text]
    if len(texts) < 2:
        return None
    correct, total = np.zeros((2, ORDERS, len(texts)), np.int64)
    for order, grams in enumerate(ngrams(texts, ORDERS)):
        np.add.at(correct[order], grams.text, np.minimum(grams.count, grams.most_elsewhere()))
        np.add.at(total[order], grams.text, grams.count)
    lengths = [len(text) for text in texts]
    scores = []
    for i, length in enumerate(lengths):
        closest = min((abs(other - length), other) for j, other in enumerate(lengths) if j != i)[1]
        score = BLEU.compute_bleu(
            correct[:, i].tolist(), total[:, i].tolist(), length, closest, smooth_method=SMOOTHING, effective_order=True
        )
        scores.append(score.score / 100)
    return float(np.mean(scores))


def distinct(texts: Sequence[Tokens], order: int) -> float | None:
    """Return the share of different n-grams among the n-grams of all texts; None for fewer than two texts, or no n-gram."""
    *_, grams = ngrams(texts, order)
    total = int(grams.count.sum())
    return len(np.unique(grams.gram)) / total if len(texts) > 1 and total else None


def pairwise_distance(texts: Sequence[Tokens]) -> float | None:
    """Return the mean over pairs of 1 - 2 LCS / (length + length), LCS the longest common subsequence of tokens.

    This is the normalised Indel distance: 0 for equal texts, 1 for texts without a common token. None for fewer than two.
    """
    if len(texts) < 2:
        return None
    numbers: dict[str, int] = {}
    numbered = [[numbers.setdefault(token, len(numbers)) for token in text] for text in texts]
    return float(np.mean([Indel.normalized_distance(a, b) for a, b in combinations(numbered, 2)]))


def unique_ratio(things: Sequence[Hashable]) -> float | None:
    """Return the share of different things; None for fewer than two."""
    return len(set(things)) / len(things) if len(things) > 1 else None


def normalised_text(text: str) -> str:
    """Return a text with single blanks: texts that differ in their blanks alone are the same."""
    return " ".join(text.split())


def normalised_code(program: str) -> str:
    """Return a program without empty lines and blanks at the end of lines; its indentation says what it does, so it stays."""
    return "\n".join(line.rstrip() for line in program.split("\n") if line.strip())


def node_counts(program: str) -> Mapping[str, int] | None:
    """Return how often each type of node is in the syntax tree of a Python program; None if it is not Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deep for the parser
        return None
    return Counter(type(node).__name__ for node in ast.walk(tree))


def ast_distance(trees: Sequence[Mapping[str, int]]) -> float | None:
    """Return the mean over pairs of 1 - sum of minima / sum of maxima of the node counts; None for fewer than two trees."""
    if len(trees) < 2:
        return None
    types = sorted({kind for tree in trees for kind in tree})
    counts = np.array([[tree.get(kind, 0) for kind in types] for tree in trees])
    a, b = np.triu_indices(len(trees), 1)
    return float(np.mean(1 - np.minimum(counts[a], counts[b]).sum(1) / np.maximum(counts[a], counts[b]).sum(1)))
