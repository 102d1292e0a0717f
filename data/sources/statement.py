"""The description of a code problem: its statement up to the part about input and examples (behaviour A.1)."""

import re

_MARK = r"[-=_\[\]~*|]*"  # what decorates a heading
_SEPARATOR = re.compile(
    rf"""^[ \t]*\#*[ \t]*(?:
        {_MARK}[ ]*input(?:[ ](?:format|specification|section)|[ ]*(?:and|&|/|//)[ ]*output)?[ ]*:?[ ]*{_MARK}[ \t]*:?[ \t]*$  # a heading
      | input(?:[ ](?:format|specification|section))?[ \t]*-[^\n]*$          # Input - two integers
      | {_MARK}[ ]*examples?[ ]*\d*[ ]*:?[ ]*{_MARK}[ \t]*:?[ \t]*$          # Example 1:
      | [^\n]*for[ ]example:[^\n]*$ | [^\n]*```[^\n]*$ | [^\n]*-----[^\n]*$
    )\n""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


def describe(problem: str, shortest: int = 10) -> str:
    """Return the text before the first separator line; "" if that is shorter than `shortest` characters."""
    found = _SEPARATOR.search(problem)
    text = problem[: found.start()] if found else problem
    if text.rstrip().endswith("-"):  # the upper line of a framed heading
        text = text.rstrip().rpartition("\n")[0]
    return "" if len(text) < shortest else text.strip()
