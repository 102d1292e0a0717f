"""What a child of the host does with a program: `run` it, `call` one of its functions, `serve` its functions to a test,
or `check` a test against served functions. Standard library only; the walls are up before any of this runs.

File descriptors: 0 input, 1 output, 2 nothing, 3 source, 4 report, 5 the line between `serve` and `check`.

A report is one line of JSON: {"value": ...} (call), {"ok": true} (check) or {"error": {type, message, frames}}. A
program could write its own: for `run` and `call` it holds nothing that would make a wrong answer right, and the report
of `check` lies in another process than the program.
"""

import ast
import atexit
import builtins
import json
import linecache
import os
import sys
import threading
import types

import wire

_open = open  # a program may replace the built-in one

NAME = "solution.py"
TYPING = "from typing import *\n"
LEETCODE = TYPING + (  # what the sites whose tests call functions have imported already
    "import math, heapq, bisect, itertools, functools, collections, operator, random, re, string, sys\n"
    "from math import *\nfrom heapq import *\nfrom bisect import *\nfrom itertools import *\nfrom functools import *\n"
    "from collections import *\nfrom operator import *\nfrom math import pow\n"
)


class ProgramError(Exception):
    """A program that has not what was asked of it; said as its own error."""


def main(mode: str, function: str, write=os.write, leave=os._exit) -> None:
    """Run the child's part and end the process. The defaults hold what a program might replace."""
    context, _, source = _read(3).partition("\0")  # a source has no NUL
    linecache.cache[NAME] = (len(source), None, source.splitlines(True), NAME)
    _open_streams()
    code, report = 0, None
    try:
        report = _MODES[mode](source, context, function)
    except SystemExit as end:
        code = _exit_code(end.code)
        report = json.dumps({"error": {"type": "SystemExit", "message": str(end.code), "frames": []}}) if code or mode != "run" else None
    except BaseException as error:  # noqa: BLE001  whatever a program raises is what it is judged by
        code, report = 1, json.dumps({"error": _describe(error)})
    try:
        _finish()
    except BaseException as error:  # noqa: BLE001  output that cannot be flushed, an atexit function that raises
        code, report = code or 1, report or json.dumps({"error": _describe(error)})
    if report is not None:
        data = report.encode("utf-8", "replace")
        while data:
            data = data[write(4, data) :]
    leave(code)


def _run(source: str, context: str, _: str) -> None:
    _execute(source, "__main__", context)


def _call(source: str, context: str, function: str, dumps=wire.dumps) -> str:
    arguments = wire.loads(sys.stdin.read())
    _open_streams(os.devnull)
    namespace = _execute(source, "solution", LEETCODE + context)
    positional, named = arguments
    return '{"value": ' + dumps(_find(namespace, function, source)(*positional, **named)) + "}"


def _serve(source: str, context: str, _: str) -> None:
    namespace = _execute(source, "solution", TYPING + context)
    with _open(os.dup(5), "r", encoding="utf-8") as asked, _open(os.dup(5), "w", encoding="utf-8") as answers:
        names = {name: callable(value) for name, value in namespace.items() if not name.startswith("__")}
        values = {name: namespace[name] for name, call in names.items() if not call and not isinstance(namespace[name], types.ModuleType)}
        print(wire.dumps([[name for name, call in names.items() if call], values]), file=answers, flush=True)
        for line in asked:
            name, positional, named = wire.loads(line)
            try:
                answer = {"value": namespace[name](*positional, **named)}
            except Exception as error:  # noqa: BLE001  the test may expect it
                answer = {"error": _describe(error)}
            print(wire.dumps(answer), file=answers, flush=True)


def _check(source: str, _: str, __: str) -> str:
    asked = _open(os.dup(5), "r", encoding="utf-8")
    asking = _open(os.dup(5), "w", encoding="utf-8")

    def ask(*what):
        if what:
            print(wire.dumps(list(what)), file=asking, flush=True)
        line = asked.readline()
        if not line:
            raise ProgramError("the program ended before the test did")
        return wire.loads(line)

    def served(name):
        def function(*positional, **named):
            answer = ask(name, list(positional), named)
            if "error" not in answer:
                return answer["value"]
            kind = getattr(builtins, str(answer["error"]["type"]), None)
            kind = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
            error = kind(answer["error"]["message"])
            error.of_program = answer["error"]
            raise error

        return function

    functions, values = ask()
    namespace = {"__name__": "__test__", **values, **{name: served(name) for name in functions}}
    exec(TYPING, namespace)
    exec(compile(source, "test.py", "exec"), namespace)
    return '{"ok": true}'


_MODES = {"run": _run, "call": _call, "serve": _serve, "check": _check}


def _execute(source: str, name: str, prelude: str) -> dict[str, object]:
    """Run a source as module `name`; return its namespace."""
    module = types.ModuleType(name)
    sys.modules[name] = sys.modules["__main__"] = module
    module.__dict__.update(__file__=NAME, __builtins__=builtins)
    if prelude:
        exec(prelude, module.__dict__)
    exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _find(namespace: dict[str, object], function: str, source: str):
    """Return the function to call: by name, a method of `class Solution`, or the only thing there is."""
    if callable(namespace.get(function)):
        return namespace[function]
    solution = namespace.get("Solution")
    if isinstance(solution, type):
        methods = [name for name in vars(solution) if not name.startswith("_")]
        name = function or (methods[0] if methods else "")
        if callable(getattr(solution, name, None)):
            return getattr(solution(), name)
    defined = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    if not function and defined:
        return namespace[defined[0]]
    raise ProgramError(f"there is no function {function!r}" if function else "there is no function to call")


def _read(descriptor: int) -> str:
    with _open(descriptor, "rb", closefd=False) as file:
        return file.read().decode("utf-8", "replace")


def _open_streams(given: str | int = 0) -> None:
    sys.stdin = _open(given, "r", encoding="utf-8", errors="replace", closefd=False) if given == 0 else _open(given)
    sys.stdout = _open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = _open(2, "w", encoding="utf-8", errors="replace", closefd=False, buffering=1)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def _finish() -> None:
    """End as an interpreter does: wait for the threads that are no daemons, run what was registered, flush."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if not sys.stdout.closed:
        sys.stdout.flush()


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    return code & 255 if isinstance(code, int) else 1


def _describe(error: BaseException) -> dict[str, object]:
    """Return type, message and the program's own frames, innermost last, as [line, function, source line]."""
    if hasattr(error, "of_program"):  # raised again in the test: described where it happened
        return error.of_program
    frames, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == NAME:
            frames.append([trace.tb_lineno, code.co_name, linecache.getline(NAME, trace.tb_lineno).strip()[:250]])
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == NAME and error.lineno:
        frames = [[error.lineno, "<module>", (error.text or "").strip()[:250]]]
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:500]
    except Exception:  # noqa: BLE001  an exception class whose own __str__ raises
        message = ""
    return {"type": type(error).__name__[:100], "message": message, "frames": frames[:2] + frames[-3:] if len(frames) > 5 else frames}
