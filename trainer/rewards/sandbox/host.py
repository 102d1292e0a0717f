"""The sandbox host: a fresh, small interpreter behind the walls that forks one child for each program it is asked to run.

    python -s -P host.py CONTROL OPTIONS       CONTROL: descriptor of a SOCK_SEQPACKET socket; OPTIONS: JSON

It holds no test and no answer: inputs and programs come as open files which only the child reads. A fork of it costs
half a millisecond, where a new interpreter costs twenty. After each request everything that was started is killed and
reaped, and the box emptied. It ends when its socket does. Standard library only.
"""

import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import isolation
import program

TICK = 0.02  # seconds between two looks at what a program uses
DISK = 1.0  # seconds a program may wait for a disk in all while another of its processes sleeps: a vfork without end looks the same
BOX = "mopd-box-"  # how the folders of hosts without a file view begin
PAGE, HERTZ = resource.getpagesize(), os.sysconf("SC_CLK_TCK")
# Imported once here, so that a program's import of them is a look-up. What makes a fork slower (numpy: 0.5 ms) is
# loaded by a host of its own for the programs that want it.
COMMON = (
    "abc", "array", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq", "io",
    "itertools", "json", "math", "numbers", "operator", "os", "random", "re", "statistics", "string", "struct", "sys", "textwrap",
    "threading", "time", "typing",
)  # fmt: skip


class Host:
    """The walls that could be put up, and the one request it works on."""

    def __init__(self, control: socket.socket, layers: list[str]) -> None:
        self.control, self.wanted = control, layers
        self.missing: dict[str, str] = {}
        self.contained = False  # alone in its namespaces, with its own view of the files
        self.uid: int | None = None
        self.box = ""
        self.spare: tuple[int, socket.socket] | None = None

    def enter(self, output: int) -> None:
        """Put up the walls that stand for the host's whole life; programs may write `output` bytes a file."""
        if os.getuid() == 0 and "uid" in self.wanted:
            try:
                self.uid, self.claim = isolation.claim_uids()
            except OSError as error:
                self.missing["uid"] = str(error)
        else:
            self.missing["uid"] = "not root"
        if self._try("namespaces", _try_namespaces):
            _enter_namespaces()
            self.contained, self.box = True, "/box"
        else:
            isolation.prctl(isolation.PR_SET_CHILD_SUBREAPER, 1)
            _remove_left_boxes()
            unlocked = tempfile.mkdtemp(prefix="mopd-new-")
            os.chmod(unlocked, 0o777)
            fcntl.flock(os.open(unlocked, os.O_RDONLY), fcntl.LOCK_EX)  # until this process ends, however it does
            self.box = unlocked.replace("mopd-new-", BOX)
            os.rename(unlocked, self.box)  # a name other hosts look for only now that it is locked
        if os.readlink("/proc/self") != str(os.getpid()):  # what is killed after a program is found by its number there
            raise OSError("/proc shows another process namespace than this process is in")
        os.environ.update(HOME=self.box, TMPDIR=self.box)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, programs go first; they inherit this
        isolation.limit_for_good(output)
        isolation.prctl(isolation.PR_SET_DUMPABLE, 0)
        isolation.prctl(isolation.PR_SET_NO_NEW_PRIVS, 1)
        self._try("seccomp", isolation.seccomp)  # inherited as well
        size, resident, shared = _statm("self")
        self.own_memory, self.own_private = size, resident - shared

    def _try(self, layer: str, step) -> bool:
        if layer not in self.wanted:
            self.missing.setdefault(layer, "not asked for")
            return False
        try:
            step()
        except OSError as error:
            self.missing[layer] = str(error)
            return False
        return True

    def probe(self) -> None:
        """Find out in a child which of a child's walls stand; raise OSError if a program could not even start."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                missing = self._confine({"cpu": 10, "memory": 1 << 30, "processes": 64}, 0)
                with open(os.path.join(os.path.dirname(os.__file__), "string.py")) as file:
                    file.read(1)
                os.write(writer, json.dumps(missing).encode())
            except OSError as error:
                os.write(writer, json.dumps(str(error)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as told:
            said = json.loads(told.read() or '"a child died before its first line"')
        os.waitpid(child, 0)
        if isinstance(said, str):
            raise OSError(f"a program of uid {self.uid} cannot start ({said}); the interpreter at {sys.base_prefix} must be readable by it")
        self.missing.update(said)

    def _confine(self, limits: dict, job: int) -> dict[str, str]:
        """Put up the walls of this process, a child; return the layers the kernel refused."""
        missing = {}
        os.setsid()
        os.chdir(self.box)
        alone = self.uid is not None or self.contained
        isolation.limit(
            cpu=limits["cpu"],
            memory=self.own_memory + limits["memory"],
            processes=limits["processes"] + (0 if alone else _threads_of(os.getuid())),
        )
        if self.uid is not None:
            isolation.become(self.uid + min(job, 1))
        elif self.contained:
            isolation.drop_capabilities()
        isolation.prctl(isolation.PR_SET_DUMPABLE, 0)
        if not self.contained:
            try:
                if "landlock" not in self.wanted:
                    raise isolation.Refused(0, "not asked for")
                isolation.landlock(self.box)
            except OSError as error:
                missing["landlock"] = str(error)
            if self.uid is None and ("landlock" in missing or isolation.landlock_version() < isolation.SCOPES):
                missing["signals"] = missing.get("landlock") or f"Landlock {isolation.landlock_version()}, {isolation.SCOPES} is needed"
        return missing

    def serve(self) -> None:
        """Answer requests until the socket closes. The next child is forked while nobody waits for it."""
        while True:
            self.spare = self._fork()
            message, files, _, _ = socket.recv_fds(self.control, 1 << 16, 64)
            if not message:
                return
            answer = self.run(json.loads(message), files)
            self.control.send(json.dumps(answer).encode())

    def run(self, request: dict, files: list[int]) -> dict:
        """Run the jobs of a request until the first has ended; return what became of it."""
        started, children, lines = time.monotonic(), [], []
        for number, job in enumerate(request["jobs"]):
            handles, files = files[: job["files"]], files[job["files"] :]
            child, line = self.spare or self._fork()
            self.spare = None
            socket.send_fds(line, [json.dumps({**job, "number": number, "limits": request["limits"]}).encode()], handles)
            children.append(child)
            lines.append(line)
            for handle in handles:
                os.close(handle)
        killed, cpu = self._watch(children[0], request["limits"])
        wall = time.monotonic() - started
        status, usage = self._end(children[0])
        self._clean()
        for line in lines:
            with line:
                try:
                    refused = line.recv(1 << 12, socket.MSG_DONTWAIT)
                except (ConnectionError, BlockingIOError):  # it was killed before it had read its job
                    refused = b""
            if refused:
                return {"error": f"a wall around a program could not be put up: {refused.decode()}"}
        return {"status": status, "killed": killed, "wall": wall, "cpu": max(cpu, usage)}

    def _fork(self) -> tuple[int, socket.socket]:
        """Return a child that waits for its job, and the socket it waits at."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child:
            theirs.close()
            return child, ours
        try:
            ours.close()
            message, handles, _, _ = socket.recv_fds(theirs, 1 << 16, 16)
            if message:
                self._become_program(json.loads(message), handles, theirs)
        finally:
            os._exit(70)

    def _become_program(self, job: dict, handles: list[int], line: socket.socket) -> None:
        try:
            self._confine(job["limits"], job["number"])
        except Exception as error:  # noqa: BLE001  not the program's fault, whatever it is
            line.send(f"{type(error).__name__}: {error}".encode())
            return
        for place, handle in enumerate(handles):  # handles lie above the places: 0 to 2 and three sockets are open
            os.dup2(handle, place)
        os.closerange(len(handles), 4096)
        for name in ("isolation", "program", "wire", "host"):
            sys.modules.pop(name, None)
        sys.argv = [program.NAME]
        if job["mode"] == "check":  # the program may have put modules into the box
            os.chdir("/")
            del sys.path[0]
        else:
            sys.path[0] = self.box
        signal.signal(signal.SIGINT, signal.default_int_handler)
        gc.enable()
        program.main(job["mode"], job["function"], job["site"])

    def _watch(self, first: int, limits: dict) -> tuple[str | None, float]:
        """Wait for the first child; return why it was killed, if it was, and the CPU seconds of all.

        A program's time is the CPU it used plus the time in which none of its threads wanted to run: what it waits for a
        core or a disk on a loaded machine is not its fault, what it sleeps is.
        """
        handle = os.pidfd_open(first)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self.control, 0)  # hang-up only: the worker is gone, nobody waits for an answer
        idle, disk, cpu, last = 0.0, 0.0, 0.0, time.monotonic()
        deadline = last + 10 * limits["cpu"] + 10
        try:
            while not (events := poll.poll(TICK * 1000)):
                used, memory, states = self._usage(limits["memory"])
                now = time.monotonic()
                if "R" not in states and used <= cpu:
                    waits = "D" in states and (states <= {"D", "Z"} or disk < DISK)
                    disk, idle = (disk + now - last, idle) if waits else (disk, idle + now - last)
                cpu, last = max(cpu, used), now
                if memory > limits["memory"]:
                    return "memory", cpu
                if cpu + idle > limits["cpu"] or now > deadline:
                    return "time", cpu
        finally:
            os.close(handle)
        return ("abandoned" if events[0][0] != handle else None), cpu

    def _usage(self, limit: int) -> tuple[float, int, set[str]]:
        """Return CPU seconds, bytes of memory, and the states any thread is in, over all processes of the request."""
        cpu, memory, states, found = 0, 0, set(), []
        for process in self._processes():
            try:
                with open(f"/proc/{process}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                tasks = os.listdir(f"/proc/{process}/task") if int(fields[17]) > 1 else []
                states.add(fields[0])
                for task in tasks:
                    with open(f"/proc/{process}/task/{task}/stat") as file:
                        states.add(file.read().rpartition(")")[2].split()[0])
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            cpu += sum(int(value) for value in fields[11:15])
            memory += int(fields[21]) * PAGE
            found.append(process)
        if memory > limit:  # pages shared with the host and each other were counted for each of them: look closely
            memory = sum(self._proportional(process) for process in found)
        return cpu / HERTZ, memory, states

    def _proportional(self, process: int) -> int:
        """Return the bytes of a process, shared pages divided by the number of those who share them.

        Where an ordinary user's host may not look so closely: its own pages, without those it got with the fork. Pages
        that the program's processes share with each other then count for each.
        """
        try:
            try:
                with open(f"/proc/{process}/smaps_rollup") as file:
                    return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) << 10
            except PermissionError:
                _, resident, shared = _statm(process)
                return max(0, resident - shared - self.own_private)
        except (OSError, StopIteration, ValueError):  # it has just ended
            return 0

    def _processes(self) -> list[int]:
        """Return the pids of what the request started: all but this one, or where they are not alone, its descendants."""
        everything = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        if self.contained:
            return [pid for pid in everything if pid != 1]
        parents = {}
        for pid in everything:
            try:
                with open(f"/proc/{pid}/stat") as file:
                    parents[pid] = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        found, own = [], os.getpid()
        for pid in parents:
            up = pid
            while up in parents and up != own:
                up = parents[up]
            if up == own and pid != own:
                found.append(pid)
        return found

    def _end(self, first: int) -> tuple[int, float]:
        """Kill and reap everything the request started; return the first child's status and CPU seconds."""
        status, usage = 0, 0.0
        while True:
            self._kill()
            try:
                child, code, used = os.wait4(-1, 0 if self.contained else os.WNOHANG)
            except ChildProcessError:
                return status, usage
            if child == first:
                status, usage = code, used.ru_utime + used.ru_stime
            if child == 0:
                time.sleep(0.001)

    def _kill(self) -> None:
        if self.contained:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:  # nobody left
                return
            return
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def _clean(self) -> None:
        """Empty the box, whatever names and modes the program gave to what it left."""
        moved = 0
        os.chmod(self.box, 0o777)
        while entries := list(os.scandir(self.box)):
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)
                for inner in list(os.scandir(entry.path)):  # up to the top, so that no depth is too deep
                    if inner.is_dir(follow_symlinks=False):
                        os.chmod(inner.path, 0o700)
                    while os.path.lexists(place := os.path.join(self.box, f".{moved}")):
                        moved += 1
                    os.rename(inner.path, place)
                os.rmdir(entry.path)

    def close(self) -> None:
        """Remove what lies outside the walls."""
        if self.box and not self.contained:
            shutil.rmtree(self.box, ignore_errors=True)


def _statm(process: int | str) -> tuple[int, int, int]:
    """Return the bytes of a process: address space, resident, resident of files and shared memory."""
    with open(f"/proc/{process}/statm") as file:
        size, resident, shared, *_ = (int(pages) * PAGE for pages in file.read().split())
    return size, resident, shared


def _remove_left_boxes() -> None:
    """Remove the folders of hosts that were killed: those that nobody holds locked any more."""
    for entry in list(os.scandir(tempfile.gettempdir())):
        if entry.name.startswith(BOX) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):  # another user's, or another host is faster
                handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path)
                finally:
                    os.close(handle)


def _threads_of(uid: int) -> int:
    """Return how many threads a user has on this machine: the kernel's limit counts all of them."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except OSError:  # it has just ended
                continue
    return count


def _enter_namespaces() -> None:
    """Go on as process 1 of new namespaces, with a view of the files that holds what programs need; the parent waits."""
    isolation.unshare()
    child = os.fork()
    if child:
        os.closerange(3, 256)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    isolation.enter_view()


def _try_namespaces() -> None:
    """Enter them in a child that ends: half-way in there is no way back, and a container may allow one step and not the next.

    Raises:
        OSError: saying which step was refused.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolation.unshare()
            if (inner := os.fork()) == 0:
                isolation.enter_view()
                os._exit(0)
            os.waitpid(inner, 0)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        refused = told.read()
    os.waitpid(child, 0)
    if refused:
        raise OSError(refused)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    for name in [*COMMON, *options["modules"]]:
        try:
            __import__(name)
        except ImportError:  # not installed: a program cannot have it either
            continue
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which then closes the socket
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    stack = 120 << 20  # what lies free below the stack of an interpreter
    resource.setrlimit(resource.RLIMIT_STACK, (stack if hard == resource.RLIM_INFINITY else min(stack, hard), hard))
    host = Host(control, options["layers"])
    try:
        host.enter(options["output"])
        host.probe()
        gc.collect()
        gc.freeze()
        gc.disable()
        control.send(json.dumps({"missing": host.missing}).encode())
        host.serve()
    except OSError as error:  # walls that do not stand at all; or the worker was killed while a program ran, and nobody listens
        with contextlib.suppress(OSError):
            control.send(json.dumps({"error": str(error)}).encode())
    finally:
        host.close()


if __name__ == "__main__":
    main()
