"""What the teacher is told of a program that failed (layout and limits: behaviour 2.3).

Only public tests are shown with their input and expected output; of hidden ones the feedback names what happened, never
what was expected, unless `reward.feedback_tests=all`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.rewards.code import TestRun, Tests

FORMAT_FEEDBACK = "No program was found: put the complete program into one block that starts with ```python and ends with ```."
CASES, CHARACTERS, LINE, INPUT_LINES, FRAMES = 2, 2000, 250, 8, 3
_TITLES = (("Runtime Error", "error", "memory"), ("Time Limit Exceeded", "time"), ("Output Limit Exceeded", "output"))


def feedback(tests: "Tests", runs: Sequence["TestRun"], *, show_all: bool) -> str:
    """Return the first runtime error, else the first time limit, else the two smallest wrong cases; "" if all passed."""
    shown = len(runs) if show_all else min(tests.public, len(runs))
    for title, *kinds in _TITLES:
        failed = [i for i, run in enumerate(runs) if run.kind in kinds]
        if failed:
            first = failed[0]
            lines = [title, *_error(runs[first].error)]
            if first < shown:
                lines += ["", "Last Executed Input", *_input(tests.inputs[first])]
            return _joined(lines)
    wrong = [i for i, run in enumerate(runs) if run.kind == "wrong"]
    if not wrong:
        return ""
    visible = sorted((i for i in wrong if i < shown), key=lambda i: len(_text(tests.inputs[i])) + len(runs[i].actual))
    if not visible:
        seen = ", the public ones pass" if tests.public else ""
        return f"Wrong Answer on {len(wrong)} of {len(runs) - shown} hidden tests{seen}." if shown < len(runs) else "Wrong Answer"
    lines = []
    for i in visible[:CASES]:
        case = [f"Test Case {i + 1}: Wrong Answer", "", "Input", *_input(tests.inputs[i])]
        if tests.kind != "code":  # there, the input is the test with all it expects
            case += ["", "Output", *_lines(runs[i].actual), "", "Expected", *_lines(_text(tests.outputs[i]))]
        lines += [*case, ""]
    return _joined(lines)


def _error(error: Mapping[str, Any] | None) -> list[str]:
    """Return the error's own line and the innermost of the program's frames."""
    if not error:
        return []
    lines = [f"{error.get('type', 'Error')}: {error.get('message', '')}".rstrip(": ")[:LINE]]
    frames = error.get("frames")
    for frame in (frames if isinstance(frames, list) else [])[-FRAMES:]:
        if isinstance(frame, list) and len(frame) == 3:  # [line, function, source line]
            number, function, source = frame
            lines += [f"    {source}"[:LINE]] if source else []
            lines.append(f"Line {number} in {function}"[:LINE])
    return lines


def _input(given: Any) -> list[str]:
    if isinstance(given, dict):
        return _lines("\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items()))
    return _lines(_text(given))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _lines(text: str) -> list[str]:
    lines = text.rstrip("\n").split("\n")
    more = [f"... ({len(lines) - INPUT_LINES} more lines)"] if len(lines) > INPUT_LINES else []
    return [line if len(line) <= LINE else line[:LINE] + "..." for line in lines[:INPUT_LINES]] + more


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines).strip("\n")[:CHARACTERS]
