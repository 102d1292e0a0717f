"""From logits to tokens: one uniform number per token, drawn from the sample's own stream.

The token is where the uniform falls in the cumulative distribution, so a sample depends on its seed and its logits,
not on which other samples run beside it.
"""

import numpy as np
import torch
from torch import Tensor

from trainer.engines.base import Sampling


def uniforms(seeds: list[int], tokens: int) -> np.ndarray:
    """Return float32 numbers in [0, 1), [samples, tokens]: row i is the stream of seed i."""
    return np.stack([np.random.Generator(np.random.Philox(seed)).random(tokens, np.float32) for seed in seeds])


def sample(logits: Tensor, uniform: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the next token int64 [B] and its log-prob float32 [B] under the distribution sampled from.

    Args:
        logits: float32 [B, V], before the temperature.
        uniform: float32 [B] in [0, 1).
    """
    if sampling.greedy:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    logp = filtered_logp(logits, sampling)
    cumulative = logp.exp().cumsum(-1)
    drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    # rounding can push the draw past the last word: take the likeliest instead
    tokens = torch.where(drawn < logits.shape[-1], drawn, logp.argmax(-1))
    return tokens, logp.gather(-1, tokens[:, None]).squeeze(-1)


def filtered_logp(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the log-distribution after temperature, top-k and top-p, renormalised: [B, V], -inf where ruled out."""
    logp = (logits / sampling.temperature).log_softmax(-1)
    if sampling.top_k != -1 and sampling.top_k < logp.shape[-1]:
        values, words = logp.topk(sampling.top_k, -1)  # exactly k words, also among equals
        logp = torch.full_like(logp, -torch.inf).scatter(-1, words, values.log_softmax(-1))
    if sampling.top_p < 1:
        ordered, index = logp.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the likelier words: the first one always stays
        logp = logp.masked_fill((before >= sampling.top_p).gather(-1, index.argsort(-1)), -torch.inf).log_softmax(-1)
    return logp
