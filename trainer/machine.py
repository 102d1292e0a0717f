"""What this process may use of the machine."""

import os


def cores() -> int:
    """Return how many cores this process may run on: fewer than the machine's under `taskset`, Slurm or a container's cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
