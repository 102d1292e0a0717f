"""The sandbox as a verifier sees it: programs go in, what became of them comes out."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LAYERS = ("namespaces", "uid", "landlock", "seccomp")
HOST = Path(__file__).with_name("host.py")
OUTPUT_LIMIT = 16 << 20  # bytes a program may print
START_LIMIT = 60.0  # seconds the host may take to start


class SandboxError(Exception):
    """The sandbox itself failed; says nothing of the program."""


@dataclass(frozen=True)
class Limits:
    """What one program may use: `cpu` seconds, bytes of `memory` beyond the interpreter's, processes."""

    cpu: float = 6.0
    memory: int = 1 << 30
    processes: int = 64


@dataclass(frozen=True)
class Job:
    """One program: `mode` is run, call, serve or check (`program.py`). One serve and one check job share a line."""

    mode: str
    source: str
    stdin: str = ""
    function: str = ""
    context: str = ""  # run before the source, in the same module; of a check only its imports
    site: bool = False  # run: the LiveCodeBench judge's imports come before it, as they always do before a call


@dataclass(frozen=True)
class Result:
    """What became of a program. `killed` is None, "time" or "memory"; `signal` is what ended it otherwise, 0 if none."""

    exit_code: int
    signal: int
    killed: str | None
    cpu: float
    wall: float
    stdout: str
    reports: Sequence[dict]  # one a job

    @property
    def report(self) -> dict:
        """The first job's report."""
        return self.reports[0]


class Sandbox:
    """A host process and the socket to it. Started with the first program; started again should it die.

    `modules` are imported by the host beside the common ones. `layers` leaves walls out, for tests and measurements.
    `python` is the host's interpreter, `user` the uid it starts as.
    """

    def __init__(
        self, modules: Sequence[str] = (), *, layers: Sequence[str] = LAYERS, python: str = sys.executable, user: int | None = None
    ) -> None:
        self.modules, self.layers, self.python, self.user = tuple(modules), tuple(layers), python, user
        self.missing: dict[str, str] = {}
        self._host: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as this object
        self._lock = threading.Lock()  # one request at a time

    def run(self, jobs: Sequence[Job], limits: Limits) -> Result:
        """Run jobs side by side until the first has ended, then end the others; return what became of the first.

        Raises:
            SandboxError: when the host cannot start, or died twice over the same jobs.
        """
        with self._lock:
            try:
                return self._run(jobs, limits)
            except (ConnectionError, TimeoutError):
                self.close()
            try:
                return self._run(jobs, limits)
            except (ConnectionError, TimeoutError) as error:
                self.close()
                raise SandboxError(f"the sandbox host died twice over one program ({error}): {self._said()}") from None

    def _run(self, jobs: Sequence[Job], limits: Limits) -> Result:
        control = self._control or self._start()
        with contextlib.ExitStack() as stack:
            handles, described = [], []
            line = dict(zip(("check", "serve"), socket.socketpair(), strict=True))
            stack.callback(_close, line)
            nothing = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, nothing)
            for job in jobs:
                own = [_file(stack, job.stdin), _file(stack), nothing, _file(stack, f"{job.context}\0{job.source}"), _file(stack)]
                if job.mode in line:
                    own.append(line[job.mode].fileno())
                handles.append(own)
                described.append({"mode": job.mode, "function": job.function, "site": job.site, "files": len(own)})
            request = json.dumps({"jobs": described, "limits": asdict(limits)}).encode()
            socket.send_fds(control, [request], [handle for own in handles for handle in own])
            _close(line)  # so that either end sees when the other has gone
            control.settimeout(10 * limits.cpu + 60)  # the host has a limit of its own, earlier
            answer = control.recv(1 << 16)
            if not answer:
                raise ConnectionError("its socket closed")
            told = json.loads(answer)
            if "error" in told:
                raise ConnectionError(told["error"])
            status = told["status"]
            return Result(
                exit_code=os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1,
                signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                killed=told["killed"],
                cpu=told["cpu"],
                wall=told["wall"],
                stdout=_content(handles[0][1], OUTPUT_LIMIT),
                reports=[_report(_content(own[4], OUTPUT_LIMIT)) for own in handles],
            )

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {
            "PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2",
        }  # fmt: skip
        options = json.dumps({"layers": self.layers, "modules": self.modules, "output": OUTPUT_LIMIT})
        with theirs:
            self._host = subprocess.Popen(
                [self.python, "-s", "-P", str(HOST), str(theirs.fileno()), options],
                env=environment,
                cwd="/",
                user=self.user,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                start_new_session=True,
            )
        ours.settimeout(START_LIMIT)
        greeting = ours.recv(1 << 16)
        if not greeting:
            self._host.wait(10)
            raise SandboxError(f"the sandbox host did not start: {self._said()}")
        told = json.loads(greeting)
        if "error" in told:
            raise SandboxError(told["error"])
        self.missing, self._control = told["missing"], ours
        return ours

    def weaknesses(self) -> list[str]:
        """Return in words what the walls that could not be put up would have held back; [] before the first program."""
        missing = self.missing
        if "namespaces" not in missing:
            return []
        out = []
        if "landlock" in missing:
            out.append("read every file the trainer's users may read, and write where everybody may")
        if "seccomp" in missing:
            out.append("use the network")
        if "signals" in missing:
            out.append("end processes of this user")
        if not out:
            return []
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in missing.items())
        return [f"the code sandbox has fewer walls here ({reasons}): programs can {', '.join(out)}"]

    def close(self) -> None:
        """End the host and all it runs."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._host is not None:
            try:
                self._host.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._host.pid, signal.SIGKILL)
                self._host.wait()
            self._host = None

    def _said(self) -> str:
        """Return the last words of the host."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-2000:] or "no message"


def _file(stack: contextlib.ExitStack, text: str = "") -> int:
    """Return an open file in memory that holds a text, at its beginning."""
    handle = os.memfd_create("sandbox")
    stack.callback(os.close, handle)
    if text:
        data = text.encode("utf-8", "replace")  # half a surrogate pair, which JSON can hold
        while data:
            data = data[os.write(handle, data) :]
        os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _close(line: dict[str, socket.socket]) -> None:
    for end in line.values():
        end.close()


def _content(handle: int, limit: int) -> str:
    size = min(os.fstat(handle).st_size, limit)
    return os.pread(handle, size, 0).decode("utf-8", "replace")


def _report(text: str) -> dict:
    """Return a child's report, {} if it left none or nonsense: it lies in a file the program could write to."""
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}
