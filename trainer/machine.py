"""What this process may use of the machine."""

import os
from pathlib import Path


def cores() -> int:
    """Return how many cores this process may run on: fewer than the machine's under `taskset`, Slurm or a container's cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Return the most resident memory this process ever had, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def memory_available(root: Path = Path("/")) -> int:
    """Return the bytes processes can still take here: the machine's, or what is left under a container's limit."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    available = next(int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:")
    for group in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = group.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "sys/fs/cgroup" / controllers
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:  # version 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        own = base / path.lstrip("/")
        for folder in (own, *own.parents):  # the limits of all groups around bind; in a container the outer ones are not to be seen
            if folder.is_relative_to(base) and (folder / names[0]).is_file():
                available = min(available, _left(folder, *names))
    return available


def _left(group: Path, limit: str, usage: str, cached: str) -> float:
    """Return what a memory control group may still take; its cached files are given up for it."""
    most = (group / limit).read_text().strip()
    if most == "max":
        return float("inf")
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, int(most) - int((group / usage).read_text()) + int(statistics[cached]))
