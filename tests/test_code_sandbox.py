"""The code sandbox against programs that fight it: right verdicts, no survivor, nothing read or written, the next one right."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.hostile import ANSWER, ASSERTED, PRINTING, RETURNING
from trainer.rewards import code, verify
from trainer.rewards.sandbox import LAYERS, Job, Limits, Sandbox
from trainer.types import Outcome

SECRET = "the-hidden-tests-say-forty-two"
SYSTEM_PYTHON = "/usr/bin/python3"
ASSERTS = """import colorsys
def check(f):
    assert isinstance(f(41), int) and abs(f(41) - 42) == 0 and all([f(41) == 42])
    for value, wanted in zip([f(41)], [42]):
        assert value == wanted
    assert f(41) == 42"""
TESTS = {
    "stdin": {"inputs": ["41\n"], "outputs": ["42\n"]},
    "functional": {"inputs": ["41"], "outputs": ["42"], "fn_name": "f"},
    "code": {"inputs": [f"{ASSERTS}\ncheck(f)"], "outputs": [""], "fn_name": "f"},
}
CORPUS = [
    (kind, name, verdict, program)
    for kind, programs in (("stdin", PRINTING), ("functional", RETURNING), ("code", ASSERTED))
    for name, (verdict, program) in programs.items()
]
RIGHT = {"stdin": ANSWER, "functional": "def f(n): return n + 1", "code": "def f(n): return n + 1"}
# what stands where the kernel, or whoever started the container, refuses the rest
WALLS = {
    "root": {"layers": LAYERS},
    "root without namespaces": {"layers": ("uid", "landlock", "seccomp"), "python": SYSTEM_PYTHON},
    "user": {"layers": LAYERS, "python": SYSTEM_PYTHON, "user": 65534},
    "user without namespaces": {"layers": ("landlock", "seccomp"), "python": SYSTEM_PYTHON, "user": 65534},
}


def judge(kind: str, program: str, *, seconds: float = 0.25, **info):
    tests = json.dumps({**TESTS[kind], "testtype": kind, "time_limit": seconds})
    return verify("livecodebench", f"```python\n{program}\n```", tests, info)


def descendants() -> set[int]:
    """Return the processes below this one that are no sandbox host (host.py starts itself twice)."""
    return {child.pid for child in psutil.Process().children(recursive=True) if "host.py" not in " ".join(child.cmdline())}


@pytest.fixture
def trap(tmp_path):
    """A file to be read and a folder to be written, open to everybody, and a secret in the environment."""
    folder = Path(f"/tmp/mopd-canary-{os.getpid()}")
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "secret").write_text(SECRET)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def readable_host():
    """A copy of the host's files where any user can read them (a clone may lie in a closed home)."""
    folder = Path(f"/tmp/mopd-host-{os.getpid()}")
    shutil.copytree(Path(code.__file__).parent / "sandbox", folder)
    folder.chmod(0o755)
    yield folder / "host.py"
    shutil.rmtree(folder)


@pytest.fixture
def walls(request, monkeypatch, readable_host):
    """The sandbox of this test's walls, in place of the verifier's own."""
    options = WALLS[request.param]
    if "python" in options:
        if os.getuid() != 0 or not Path(SYSTEM_PYTHON).exists():
            pytest.skip(f"starting a sandbox as another user needs root and {SYSTEM_PYTHON}")
        monkeypatch.setattr("trainer.rewards.sandbox.client.HOST", readable_host)
    sandbox = Sandbox(**options)
    monkeypatch.setattr(code, "_sandbox", lambda numpy, lane: sandbox)
    yield sandbox
    sandbox.close()


WATCH = """
import host, os, socket, subprocess, sys, types
near, _ = socket.socketpair()
states = set(sys.argv[1].split(","))
child = subprocess.Popen(["sleep", "1.6"])
self = types.SimpleNamespace(control=near, _usage=lambda limit: (0.0, 0, states))
print(host.Host._watch(self, child.pid, {"cpu": 0.25, "memory": 1 << 30})[0])
"""


@pytest.mark.parametrize(("states", "killed"), [("D", None), ("D,Z", None), ("R", None), ("S", "time"), ("D,S", "time")])
def test_waiting_for_a_disk_is_not_a_programs_fault(states, killed):
    """Over its limit of 0.25 s by waiting 1.6 s: for a disk, for a core, asleep, and for a vfork's child that sleeps."""
    folder = Path(code.__file__).parent / "sandbox"
    said = subprocess.run([sys.executable, "-c", WATCH, states], cwd=folder, capture_output=True, text=True, check=True)
    assert said.stdout == f"{killed}\n"


@pytest.mark.slow
@pytest.mark.parametrize("walls", WALLS, indirect=True)
def test_hostile_programs(walls, trap, monkeypatch):
    """Every program gets the verdict it deserves, and after each nothing is left and the next verdict is right."""
    monkeypatch.setenv("MOPD_SECRET", SECRET)
    assert len(CORPUS) >= 60
    before, wrong = descendants(), []
    for kind, name, wanted, text in CORPUS:
        program = text.replace("{SECRET}", str(trap / "secret")).replace("{CANARY}", str(trap))
        seconds = 2.0 if name == "deep folders" else 0.25  # making them takes 0.2 s of CPU on a slow disk, and time is not its point
        verdict = judge(kind, program, seconds=seconds, feedback_tests="all", code_memory=256)
        if verdict.outcome not in wanted:
            wrong.append(f"{kind}: {name}: {verdict.outcome}, not {'/'.join(wanted)}: {verdict.feedback}")
        if SECRET in verdict.pred + verdict.feedback:
            wrong.append(f"{kind}: {name}: read the secret")
        if sorted(path.name for path in trap.iterdir()) != ["secret"]:
            wrong.append(f"{kind}: {name}: wrote outside")
            (trap / "x").unlink()
        if left := descendants() - before:
            wrong.append(f"{kind}: {name}: left processes {left}")
        after = judge(kind, RIGHT[kind])
        if after.outcome != Outcome.PASS:
            wrong.append(f"{kind}: after {name}: {after}")
    assert not wrong, "\n".join(wrong)
    family = walls.run([Job("run", PRINTING["memory bomb in children"][1])], Limits(cpu=9, memory=256 << 20))
    assert family.killed == "memory"


MASKED = """#!/bin/sh
# As Docker does: parts of /proc are covered, so that an ordinary user's namespaces may not mount it again.
exec unshare --mount sh -c 'mount -t tmpfs none /proc/fs && exec setpriv --reuid 65534 --regid 65534 --clear-groups {python} "$@"' sh "$@"
"""


@pytest.mark.slow
def test_a_container_that_allows_namespaces_but_not_their_proc_falls_back_to_landlock(tmp_path, trap, monkeypatch, readable_host):
    if os.getuid() != 0 or not Path(SYSTEM_PYTHON).exists() or not shutil.which("setpriv"):
        pytest.skip(f"masking /proc needs root, setpriv and {SYSTEM_PYTHON}")
    wrapper = tmp_path / "python"
    wrapper.write_text(MASKED.format(python=SYSTEM_PYTHON))
    wrapper.chmod(0o755)
    monkeypatch.setattr("trainer.rewards.sandbox.client.HOST", readable_host)
    sandbox = Sandbox(python=str(wrapper))
    result = sandbox.run([Job("run", f"print(6 * 7)\nopen('{trap}/secret')")], Limits())
    assert result.stdout == "42\n" and "PermissionError" in result.report["error"]["type"]
    assert "mount" in sandbox.missing["namespaces"] and sandbox.missing.keys() == {"namespaces", "uid"}
    assert sandbox.weaknesses() == []  # Landlock and seccomp hold back the rest
    bare = Sandbox(layers=())
    box = bare.run([Job("run", "import os\nprint(os.getcwd())")], Limits()).stdout.strip()
    for weakness in ("programs can read every file", "use the network", "end processes of this user"):
        assert weakness in bare.weaknesses()[0]
    bare._host.kill()
    bare._host.wait()
    assert Path(box).exists()
    bare.run([Job("run", "")], Limits())
    assert not Path(box).exists()  # what a killed host leaves, the next one removes
    bare.close()
    bare.missing = {"namespaces": "refused", "uid": "not root", "signals": "Landlock 5, 6 is needed"}
    assert "programs can end processes of this user" in bare.weaknesses()[0]
    sandbox.close()
