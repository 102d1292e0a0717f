"""Every rollout of a step as one line of JSON: what was asked, answered, judged, and who its teacher saw.

Fields of the published dumps (behaviour 3.8): input, output, gts, score, step, acc, pred, incorrect_format, feedback.
More here: uid, prompt_index, rollout_index, data_source, outcome, response_tokens, finished, peers; and, so that the
analysis reads exactly what training read, the prompt's messages and the response's own token ids, response_ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.chat import Chat
from trainer.files import write_jsonl
from trainer.types import Group


def write_rollouts(
    path: Path, groups: Sequence[Group], chat: Chat, step: int, contexts: Mapping[tuple[int, int], Any] | None = None
) -> None:
    """Write a step's rollouts, groups in batch order, rollouts in group order.

    `contexts` maps (group, rollout) to a `PeerContext`; `peers` then lists {role, rollout_index} of those shown.
    """
    rows = []
    for g, group in enumerate(groups):
        question = chat.decode(group.prompt.token_ids)
        for i, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True)):
            context = (contexts or {}).get((g, i))
            rows.append(
                {
                    "input": question,
                    "output": rollout.text,
                    "gts": group.prompt.ground_truth,
                    "score": verdict.reward,
                    "step": step,
                    **verdict.record(),
                    "uid": group.prompt.uid,
                    "prompt_index": group.prompt.index,
                    "rollout_index": i,
                    "data_source": group.prompt.data_source,
                    "messages": [dict(message) for message in group.prompt.messages],
                    "response_ids": rollout.token_ids.tolist(),
                    "response_tokens": len(rollout.token_ids),
                    "finished": rollout.finished,
                    "peers": [] if context is None else [{"role": peer.role, "rollout_index": peer.index} for peer in context.peers],
                }
            )
    write_jsonl(path, rows)
