"""The table of objectives: `policy_loss.loss_mode` -> class. To add one, write its file and add its line.

Classes are named, not imported, so that checking a configuration does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.config.schema import Config
    from trainer.objectives.base import Objective

OBJECTIVES = {
    "sdpo": "trainer.objectives.sdpo:SelfDistillationObjective",
    "vanilla": "trainer.objectives.vanilla:PolicyGradientObjective",
}


def build(config: "Config") -> "Objective":
    """Return the objective that `actor_rollout_ref.actor.policy_loss.loss_mode` names."""
    module, name = OBJECTIVES[check(config.actor_rollout_ref.actor.policy_loss.loss_mode)].split(":")
    return getattr(import_module(module), name)(config)


def check(loss_mode: str) -> str:
    """Return `loss_mode`; raise UserError listing the known ones if it is none of them."""
    if loss_mode not in OBJECTIVES:
        raise UserError(f"actor_rollout_ref.actor.policy_loss.loss_mode={loss_mode!r}: known are {', '.join(OBJECTIVES)}.")
    return loss_mode
