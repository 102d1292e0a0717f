"""From per-token losses to one loss: a weight per sequence with denominators over the whole optimizer batch.

Every published `loss_agg_mode` gives all tokens of a sequence the same weight, so a mode is a formula for one
number per sequence. Denominators count the whole optimizer batch (all ranks, all micro-batches) and are known
before the backward pass: the gradient does not depend on how the batch is cut up.
"""

from collections.abc import Callable, Sequence

LOSS_AGG_MODES: dict[str, Callable[[int, int, int, int], float]] = {
    # (tokens of this sequence, tokens of all, sequences, response budget) -> weight of each of its tokens
    "token-mean": lambda tokens, all_tokens, sequences, budget: 1 / all_tokens,
    "seq-mean-token-sum": lambda tokens, all_tokens, sequences, budget: 1 / sequences,
    "seq-mean-token-mean": lambda tokens, all_tokens, sequences, budget: 1 / (sequences * tokens),
    "seq-mean-token-sum-norm": lambda tokens, all_tokens, sequences, budget: 1 / (sequences * budget),
}


def sequence_weights(mode: str, lengths: Sequence[int], *, max_response_length: int) -> list[float]:
    """Return the weight of each token of each sequence, so that loss = sum over tokens of weight x token loss.

    Args:
        mode: one of LOSS_AGG_MODES.
        lengths: response tokens of every sequence that counts in the denominators; 0 gives weight 0.
        max_response_length: the constant of `seq-mean-token-sum-norm` (Dr. GRPO).
    """
    weight = LOSS_AGG_MODES[mode]
    all_tokens, sequences = sum(lengths), sum(length > 0 for length in lengths)
    return [weight(length, all_tokens, sequences, max_response_length) if length else 0.0 for length in lengths]
