"""Run Python nobody trusts: `Sandbox` (client.py) asks a host process (host.py) that forks one child a program behind
walls (isolation.py); program.py is what the child does, wire.py how values come back. `docs/verifiers.md` has the whole."""

from trainer.rewards.sandbox.client import LAYERS, Job, Limits, Result, Sandbox, SandboxError

__all__ = ["LAYERS", "Job", "Limits", "Result", "Sandbox", "SandboxError"]
