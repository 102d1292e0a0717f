"""The table of engines: `rollout.name` -> class. To add one, write its file and add its line."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.engines.base import Engine

ENGINES = {
    "hf": "trainer.engines.hf:HFEngine",
    "vllm": "trainer.engines.vllm:VLLMEngine",
}
# Names people know from elsewhere: said, not ignored.
NOT_YET = ("sglang",)


def check(name: str) -> str:
    """Return `name`; raise UserError saying which engines there are if it is none of them."""
    if name in NOT_YET:
        raise UserError(f"actor_rollout_ref.rollout.name={name!r}: this engine is not there yet; vllm is (ROLLOUT_BACKEND=vllm).")
    if name not in ENGINES:
        raise UserError(f"actor_rollout_ref.rollout.name={name!r}: known are {', '.join(ENGINES)}.")
    return name


def check_installed(name: str) -> None:
    """Raise UserError if the package an engine stands on is not there."""
    if name == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "actor_rollout_ref.rollout.name='vllm': vLLM is not installed in this environment. ROLLOUT_BACKEND=vllm installs it; by hand: "
            "docs/rollouts.md."
        )


def engine_class(name: str) -> "type[Engine]":
    """Return the class that `actor_rollout_ref.rollout.name` names."""
    module, attribute = ENGINES[check(name)].split(":")
    return getattr(import_module(module), attribute)
