"""One dialect for student, teacher, validation and analysis: the chat template with the run's template arguments."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np


class Chat:
    """A tokenizer together with the arguments of its chat template."""

    def __init__(self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})

    @classmethod
    def of(cls, tokenizer: "Chat | Any") -> "Chat":
        """Return a Chat as it is, or one around a plain tokenizer with no template arguments."""
        return tokenizer if isinstance(tokenizer, Chat) else cls(tokenizer)

    def text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the templated prompt, assistant header included."""
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **self.template_kwargs
        )

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text without adding special tokens, int32 [T]."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"], np.int32)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Return the token ids of the templated prompt, int32 [P]."""
        return self.encode(self.text(messages))

    def without_markers(self, text: str) -> tuple[str, int]:
        """Return a text in which the spelling of special tokens is broken by a blank, and how many were.

        What goes into a turn can then neither close it nor open another, however it was sampled.
        """
        return self._markers.subn(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    @cached_property
    def _markers(self) -> re.Pattern:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        words = {*self.tokenizer.all_special_tokens, *(str(token.content) for token in added if token.special)}
        longest_first = sorted((re.escape(word) for word in words if len(word) > 1), key=len, reverse=True)
        return re.compile("|".join(longest_first) or r"(?!)")

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of response tokens without special tokens. Never re-tokenised for training."""
        return self.tokenizer.decode([int(t) for t in token_ids], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def assistant_header(self) -> str:
        """Return what the template puts between the last user turn and the response, think markers included."""
        messages = [{"role": "user", "content": "x"}]
        without = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False, **self.template_kwargs)
        whole = self.text(messages)
        return whole.removeprefix(without)

    def stop_ids(self, eos_token_ids: int | Sequence[int] | None = None) -> list[int]:
        """Return the ids that end a response: the tokenizer's end-of-sequence and those the model names."""
        ids = {self.tokenizer.eos_token_id}
        if eos_token_ids is not None:
            ids |= {eos_token_ids} if isinstance(eos_token_ids, int) else set(eos_token_ids)
        return sorted(i for i in ids if i is not None)
