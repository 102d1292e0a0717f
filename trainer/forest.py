"""Packing and shared prefixes as one idea: a micro-batch is a forest of segments (design 6).

A segment is a run of tokens with a parent: a response's parent is its prompt, prompts that begin alike share the
beginning as an ancestor. A token attends to its own segment causally and to all of its ancestors, nothing else;
positions count along the path from the root. Flat packing is the forest in which nothing is shared.

Segments lie in preorder, so the tokens below a segment are one range [start, exit) and the whole mask is
`start[segment of k] <= q < exit[segment of k] and k <= q` on token indices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SHARED = 8  # a shorter common beginning is not worth a segment of its own


@dataclass(frozen=True, eq=False)
class Forest:
    """Tokens of a micro-batch and how they see each other.

    `token_ids`, `positions` int64 [T]; `starts`, `lengths`, `parents` int64 [S], parent -1 for a root; `exits` int64 [S],
    one past the last token below the segment. `rows` int64 [R] are the tokens whose outputs predict the response
    tokens of the sequences, one after the other; `row_counts` says how many belong to each sequence.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    parents: np.ndarray
    exits: np.ndarray
    rows: np.ndarray
    row_counts: tuple[int, ...]

    def ancestors(self, segment: int) -> list[int]:
        """Return the path from the root to the segment's parent."""
        path: list[int] = []
        parent = int(self.parents[segment])
        while parent >= 0:
            path.append(parent)
            parent = int(self.parents[parent])
        return path[::-1]

    def dense_mask(self) -> np.ndarray:
        """Return who sees whom, bool [T, T] (query, key). The reference for tests; every query pays for all keys."""
        index = np.arange(len(self.token_ids))
        segment_of = np.repeat(np.arange(len(self.starts)), self.lengths)
        inside = (self.starts[segment_of][None, :] <= index[:, None]) & (index[:, None] < self.exits[segment_of][None, :])
        return inside & (index[None, :] <= index[:, None])


@dataclass(eq=False)
class _Node:
    tokens: np.ndarray
    children: list["_Node"]
    responses: list[int]


def build(sequences: Sequence[tuple[np.ndarray, np.ndarray]], *, share: bool = True) -> Forest:
    """Pack (prompt, response) pairs, prompts non-empty, into a forest.

    The last token of a response predicts nothing, so it is not in the forest; the first one is predicted by the last
    token of its prompt, which all responses of that prompt share. `share=False` packs without sharing.
    """
    for number, (prompt, _) in enumerate(sequences):
        if not len(prompt):
            raise ValueError(f"sequence {number} has an empty prompt: nothing would predict its first token")
    trees = _prefix_trees([prompt for prompt, _ in sequences], share)

    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    starts: list[int] = []
    parents: list[int] = []
    exits: list[int] = []
    rows: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    total = 0

    def add(ids: np.ndarray, depth: int, parent: int) -> int:
        nonlocal total
        starts.append(total)
        parents.append(parent)
        exits.append(0)
        tokens.append(ids)
        positions.append(np.arange(depth, depth + len(ids)))
        total += len(ids)
        return len(starts) - 1

    def place(node: _Node, depth: int, parent: int) -> None:
        segment = add(node.tokens, depth, parent)
        end = depth + len(node.tokens)
        last = total - 1
        for sequence in node.responses:
            inner = sequences[sequence][1][:-1]
            first = total
            if len(inner):
                leaf = add(inner, end, segment)
                exits[leaf] = total
            if len(sequences[sequence][1]):
                rows[sequence] = np.concatenate([[last], np.arange(first, first + len(inner))])
        for child in node.children:
            place(child, end, segment)
        exits[segment] = total

    for tree in trees:
        place(tree, 0, -1)
    return Forest(
        token_ids=np.concatenate(tokens).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        starts=np.asarray(starts, np.int64),
        lengths=np.asarray([len(part) for part in tokens], np.int64),
        parents=np.asarray(parents, np.int64),
        exits=np.asarray(exits, np.int64),
        rows=np.concatenate([*rows, np.empty(0, np.int64)]).astype(np.int64),
        row_counts=tuple(len(part) for part in rows),
    )


def _prefix_trees(prompts: Sequence[np.ndarray], share: bool) -> list[_Node]:
    """Return trees whose root-to-node paths are the prompts; equal prompts end in one node."""
    if not share:
        return [_Node(prompt, [], [i]) for i, prompt in enumerate(prompts)]
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].astype(">u4").tobytes())
    unique: list[tuple[np.ndarray, list[int]]] = []
    for i in order:
        if unique and np.array_equal(unique[-1][0], prompts[i]):
            unique[-1][1].append(i)
        else:
            unique.append((prompts[i], [i]))
    return _grow(unique, 0)


def _grow(prompts: Sequence[tuple[np.ndarray, list[int]]], depth: int) -> list[_Node]:
    """Return the trees of sorted, distinct prompts that agree up to `depth`."""
    trees, i = [], 0
    while i < len(prompts):
        # extend the family of prompt i as long as a worthwhile beginning is common to all of it
        j, common = i + 1, len(prompts[i][0])
        while j < len(prompts):
            shared = min(common, common_prefix(prompts[i][0], prompts[j][0]))
            if shared - depth < MIN_SHARED and shared < len(prompts[i][0]):
                break
            if shared == depth:
                break
            j, common = j + 1, shared
        family = prompts[i:j]
        node = _Node(prompts[i][0][depth:common], [], [])
        if len(prompts[i][0]) == common:
            node.responses = family[0][1]
            family = family[1:]
        node.children = _grow(family, common)
        trees.append(node)
        i = j
    return trees


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return how many tokens two sequences have in common at their beginning."""
    length = min(len(a), len(b))
    different = np.nonzero(a[:length] != b[:length])[0]
    return int(different[0]) if len(different) else length


def token_count(sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Return how many tokens `build(sequences)` computes."""
    trees = _prefix_trees([prompt for prompt, _ in sequences], True)

    def count(node: _Node) -> int:
        return len(node.tokens) + sum(map(count, node.children))

    return sum(map(count, trees)) + sum(max(len(response) - 1, 0) for _, response in sequences)
