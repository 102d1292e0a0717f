r"""The content of the last `\boxed{...}` or `\fbox{...}`, braces balanced.

A regular expression cannot balance braces, and `\boxed{\frac{1}{2}}` needs it. One pass from the last box on: linear in
the length of the response, whatever it holds.
"""

import re

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, \{ or \}, belongs to the answer (a set)
_COMMANDS = ("\\boxed", "\\fbox")


def last_boxed(text: str) -> str | None:
    """Return what the last box holds, stripped; None without a box, or when the last one is never closed.

    Of nested boxes the innermost last one counts. An earlier closed box does not stand in for a last open one: the
    response was about to say something else.
    """
    start, command = max((text.rfind(command), command) for command in _COMMANDS)
    if start < 0:
        return None
    opening = start + len(command)
    while opening < len(text) and text[opening].isspace():
        opening += 1
    if not text.startswith("{", opening):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, opening):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[opening + 1 : brace.start()].strip()
    return None
