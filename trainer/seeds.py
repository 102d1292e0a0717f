"""Every random choice of a run has its own seed, derived from the run seed and a name for the choice.

Nothing is drawn from a generator that lives through the run, so a resumed, re-sharded or re-ordered run draws
the same peers, the same rollouts and the same data order as one that was never interrupted.
"""

import hashlib

import numpy as np


def derive(run_seed: int, *name: str | int) -> int:
    """Return a seed in [0, 2**63) for the choice called `name`, e.g. `derive(42, "rollout", step, uid, sample)`."""
    text = "\x1f".join([str(run_seed), *(str(part) for part in name)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(run_seed: int, *name: str | int) -> np.random.Generator:
    """Return a NumPy generator for the choice called `name` (Philox: the same stream on every platform)."""
    return np.random.Generator(np.random.Philox(derive(run_seed, *name)))
