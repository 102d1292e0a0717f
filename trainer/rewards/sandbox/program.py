"""What a child of the host does with a program: `run` it, `call` one of its functions, `serve` its functions to a test,
or `check` a test against served functions. Standard library only; the walls are up before any of this runs.

File descriptors: 0 input, 1 output, 2 nothing, 3 source, 4 report, 5 the line between `serve` and `check`: the names the
test uses go one way, then the program's values and the answers of its functions come back.

A report is one line of JSON: {"value": ...} (call), {"ok": true} (check) or {"error": {type, message, frames}}. A
program could write its own: for `run` and `call` it holds nothing that would make a wrong answer right, and the report
of `check` lies in another process than the program.
"""

import ast
import atexit
import builtins
import contextlib
import gc
import io
import json
import linecache
import os
import re
import symtable
import sys
import threading
import types
from collections import deque

import wire

_open = open  # a program may replace the built-in one

NAME = "solution.py"
RECURSION, THREAD_STACK = 50_000, 8 << 20  # the published judge's limit; bytes, as where stacks have their usual limit
_BUFFERING = re.compile(r"__del__|\bopen\((?!0\b)|FileIO|Buffered|TextIO|detach")  # what may write once it is collected
_WORD, _STREAMS = re.compile(r"\w+"), {"argv", "stdin", "stdout", "stderr"}


def _names(imports: str) -> dict[str, object]:
    namespace: dict[str, object] = {}
    exec(imports, namespace)
    del namespace["__builtins__"]
    return namespace


TYPING = _names("from typing import *")
_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools", "functools",
    "operator", "io", "sys", "json",
)  # fmt: skip
# What the LiveCodeBench judge imports before every program, in its order: the built-in names after `operator` and `math`,
# which have a `pow` of two arguments, the modules after their functions.
SITE = {
    **TYPING,
    **_names("\n".join([f"from {name} import *" for name in _MODULES] + ["from builtins import *", f"import {', '.join(_MODULES)}"])),
}


class ProgramError(Exception):
    """A program that has not what was asked of it; said as its own error."""


def main(mode: str, function: str, site: bool, write=os.write, leave=os._exit) -> None:
    """Run the child's part and end the process. The defaults hold what a program might replace."""
    context, _, source = _read(3).partition("\0")  # a source has no NUL
    linecache.cache[NAME] = (len(source), None, io.StringIO(source).readlines(), NAME)
    sys.setrecursionlimit(RECURSION)
    threading.stack_size(THREAD_STACK)  # else each thread takes as much of the memory as the stack below an interpreter
    _open_streams()
    code, report = 0, None
    try:
        report = _MODES[mode](source, context, function, site)
    except SystemExit as end:
        code = _exit_code(end.code)
        report = json.dumps({"error": {"type": "SystemExit", "message": str(end.code), "frames": []}}) if code or mode != "run" else None
    except BaseException as error:  # noqa: BLE001  whatever a program raises is what it is judged by
        code, report = 1, json.dumps({"error": _describe(error)})
    try:
        _finish(mode == "run" and _BUFFERING.search(source) is not None)
    except BaseException as error:  # noqa: BLE001  output that cannot be flushed, an atexit function that raises
        code, report = code or 1, report or json.dumps({"error": _describe(error)})
    if report is not None:
        data = report.encode("utf-8", "replace")
        while data:
            data = data[write(4, data) :]
    leave(code)


def _run(source: str, context: str, _: str, site: bool) -> None:
    _execute(source, "__main__", context, SITE if site else {})


def _call(source: str, context: str, function: str, _: bool, dumps=wire.dumps) -> str:
    positional, named = wire.loads(sys.stdin.read())
    _open_streams(os.devnull)
    namespace = _execute(source, "solution", context, SITE)
    return '{"value": ' + dumps(_find(namespace, function, source)(*positional, **named)) + "}"


def _serve(source: str, context: str, _: str, __: bool) -> None:
    namespace = _execute(source, "solution", context, TYPING)
    with _open(os.dup(5), "r", encoding="utf-8") as asked, _open(os.dup(5), "w", encoding="utf-8") as answers:
        found = {name: namespace[name] for name in json.loads(asked.readline()) if name in namespace}
        names = [name for name, value in found.items() if not isinstance(value, types.ModuleType)]
        functions = [name for name in names if callable(found[name])]
        print(json.dumps([functions, {name: _text(found[name]) for name in names if name not in functions}]), file=answers, flush=True)
        for line in asked:
            name, positional, named = wire.loads(line)
            try:
                answer = wire.dumps({"value": namespace[name](*positional, **named)})
            except Exception as error:  # noqa: BLE001  the test may expect it
                bases = [base.__name__ for base in type(error).__mro__]
                answer = wire.dumps({"error": _describe(error), "bases": bases, "args": _text(error.args)})
            print(answer, file=answers, flush=True)


def _text(value: object) -> str:
    """Return the text of a value; of one that is too large or too deep for any, that of a value equal to nothing."""
    try:
        return wire.dumps(value)
    except Exception as error:  # noqa: BLE001  a value of the program's raises what it likes
        return wire.dumps(wire.Foreign(f"<{type(value).__name__}: {type(error).__name__}>"))


def _check(source: str, context: str, function: str, _: bool) -> str:
    asked = _open(os.dup(5), "r", encoding="utf-8")
    asking = _open(os.dup(5), "w", encoding="utf-8")

    def ask(text: str) -> str:
        line = ""
        with contextlib.suppress(ConnectionError):
            print(text, file=asking, flush=True)
            line = asked.readline()
        if not line:
            raise ProgramError("the program ended before the test did")
        return line

    def served(name):
        def call(*positional, **named):
            answer = wire.loads(ask(wire.dumps([name, list(positional), named])))
            if "error" in answer:
                raise _error_of(answer)
            return answer["value"]

        return call

    wanted = _used(source)
    functions, values = json.loads(ask(json.dumps(sorted(wanted | {function} - {""}))))
    program = {name: served(name) for name in functions} | {name: wire.loads(text) for name, text in values.items()}
    # The program may add to what the test has, but stand in for it only where the test is about that very name.
    namespace = {name: value for name, value in program.items() if name in wanted} | TYPING | {"__name__": "__test__"}
    imports = [node for node in ast.parse(context).body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "context.py", "exec"), namespace)
    if function in program:
        namespace[function] = program[function]
    exec(compile(source, "test.py", "exec"), namespace)
    return '{"ok": true}'


def _used(source: str) -> set[str]:
    """Return the global names a test reads and does not bind itself, without the built-in ones."""
    top = symtable.symtable(source, "test.py", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    read, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        read |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and (table is top or symbol.is_global())}
    return {name for name in read - bound - set(dir(builtins)) if not name.startswith("__")}


def _error_of(answer: dict[str, object]) -> Exception:
    """Return the exception a function of the program raised, as the nearest built-in class it is of."""
    told = answer["error"]
    kinds = [getattr(builtins, str(name), None) for name in answer["bases"]]
    kind = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)), RuntimeError)
    if issubclass(kind, StopIteration | StopAsyncIteration):  # it would end a loop of the test in silence
        kind = RuntimeError
    try:
        error = kind(*wire.loads(answer["args"]))
    except TypeError:
        error = RuntimeError(told["message"])
    if str(error)[:500] != told["message"]:  # a class with a text of its own
        error.args = (told["message"],)
    error.of_program = told
    return error


_MODES = {"run": _run, "call": _call, "serve": _serve, "check": _check}


def _execute(source: str, name: str, context: str, given: dict[str, object]) -> dict[str, object]:
    """Run a source as module `name` that has the names `given`, after its context; return its namespace.

    Only the names it mentions are put there: every object that is touched costs the child a copy of its page.
    """
    module = types.ModuleType(name)
    sys.modules[name] = sys.modules["__main__"] = module
    mentioned = set(_WORD.findall(f"{context}\n{source}"))
    module.__dict__.update({word: given[word] for word in mentioned if word in given}, __file__=NAME, __builtins__=builtins)
    if given is SITE:  # the host has had other ones
        module.__dict__.update({word: getattr(sys, word) for word in mentioned & _STREAMS})
    if context:
        exec(context, module.__dict__)
    exec(compile(source, NAME, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _find(namespace: dict[str, object], function: str, source: str):
    """Return the function to call: a method of `class Solution`, one the program defines by that name, or the only one there is."""
    solution = namespace.get("Solution")
    if isinstance(solution, type):
        methods = [name for name in vars(solution) if not name.startswith("_")]
        name = function or (methods[0] if methods else "")
        if callable(getattr(solution, name, None)):
            return getattr(solution(), name)
    if callable(namespace.get(function)) and namespace[function] is not SITE.get(function):
        return namespace[function]
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


def _finish(collect: bool) -> None:
    """End as an interpreter does: wait for the threads that are no daemons, run what was registered, flush.

    collect: let go of the program's objects as well, so that a file it left open is written and its `__del__` run. Not for
    every program: ten million objects take seconds.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    _flush()
    if collect:
        sys.stdout = sys.__stdout__
        sys.modules.pop("__main__", None)
        gc.collect()
        _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.__stdout__):
        if hasattr(stream, "flush"):
            with contextlib.suppress(ValueError):  # closed, or detached
                stream.flush()


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    return code & 255 if isinstance(code, int) else 1


def _describe(error: BaseException) -> dict[str, object]:
    """Return type, message and the program's own frames, innermost last, as [line, function, source line]."""
    if hasattr(error, "of_program"):  # raised again in the test: described where it happened
        return error.of_program
    first, last, trace = [], deque(maxlen=3), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == NAME:
            (first if len(first) < 2 else last).append((trace.tb_lineno, trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    frames = [[line, name, linecache.getline(NAME, line).strip()[:250]] for line, name in [*first, *last]]
    if isinstance(error, SyntaxError) and error.filename == NAME and error.lineno:
        frames = [[error.lineno, "<module>", (error.text or "").strip()[:250]]]
    try:
        message = str(error.msg if isinstance(error, SyntaxError) else error)[:500]
    except Exception:  # noqa: BLE001  an exception class whose own __str__ raises
        message = ""
    return {"type": type(error).__name__[:100], "message": message, "frames": frames}
