"""vLLM as a reader: the log-probs of given responses behind given contexts, for the analysis.

A response is scored as the end of a prompt. What the prefix cache holds of a prompt is not computed again, and has no
log-probs: a pair whose cached beginning reaches into its response is asked for again without the cache.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.engines.vllm import VLLMEngine

BATCH = 256  # pairs handed over together


class VLLMScorer(VLLMEngine):
    """A VLLMEngine that is never asked to sample; its settings' `max_model_len` leaves one token beside context and response."""

    def batches(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[list[int]]:
        """Return which pairs to score together: neighbours by their contexts, which the prefix cache then shares."""
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0].astype(">u4").tobytes())
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def score(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Return log p(token | context, earlier tokens) of each pair's response, float32 [T], at temperature 1.

        Args:
            pairs: (context ids int32 [C], response ids int32 [T]), both non-empty.
        """
        self.calls += 1
        scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(pairs)
        asked = {self._ask(i, pairs[i], cached=True): i for i in range(len(pairs))}
        while asked:
            for output in self.engine.step():
                if not output.finished:
                    continue
                i = asked.pop(output.request_id)
                context, response = pairs[i]
                if (output.num_cached_tokens or 0) >= len(context):
                    asked[self._ask(i, pairs[i], cached=False)] = i
                    continue
                scores[i] = _of_response(output.prompt_logprobs, response)
        return scores

    def _ask(self, i: int, pair: tuple[np.ndarray, np.ndarray], *, cached: bool) -> str:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            max_tokens=1,  # vLLM must sample something
            temperature=0.0,
            prompt_logprobs=0,  # of the prompt's own tokens alone
            flat_logprobs=True,
            skip_reading_prefix_cache=not cached,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        name = f"{self.calls}-{i}{'' if cached else '-again'}"
        self.engine.add_request(name, {"prompt_token_ids": np.concatenate(pair).tolist()}, params)
        return name


def _of_response(logprobs: Any, response: np.ndarray) -> np.ndarray:
    """Return the log-probs of a response at the end of a prompt from vLLM's of the whole, one per position but the first."""
    count = len(response)
    if logprobs.token_ids[-count:] != response.tolist():
        raise RuntimeError("vLLM gave log-probs of other tokens than it was asked for")
    return np.array(logprobs.logprobs[-count:], np.float32)
