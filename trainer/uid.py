"""Ids of prompts: of the content, so the same wherever a file lies. Shared by the data preparation and the loader; imports no torch."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def content_uid(source: str, messages: Sequence[dict[str, Any]], truth: str) -> str:
    """Return the id of a prompt: 16 hexadecimal digits of a hash of its data source, messages and ground truth."""
    content = json.dumps([source, list(messages), truth], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def numbered(uid: str, seen: dict[str, int]) -> str:
    """Return `uid`, or `uid-2`, `uid-3`, ... where it was given out before; `seen` remembers, whatever file it came from."""
    count = seen.get(uid, 0) + 1
    name = uid if count == 1 else f"{uid}-{count}"
    while name != uid and name in seen:  # a file may hold numbered ids of its own
        count += 1
        name = f"{uid}-{count}"
    seen[uid] = count
    seen.setdefault(name, 1)
    return name
