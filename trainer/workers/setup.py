"""What both kinds of workers need to start: devices, threads, the engine of a configuration."""

import os

import torch

from trainer import engines, models
from trainer.config.schema import Config
from trainer.engines.base import Engine
from trainer.errors import UserError
from trainer.machine import cores


def choose_device(config: Config) -> str:
    """Return "cuda" or "cpu" for `trainer.device`; raise UserError if there are fewer GPUs than ranks on this node."""
    device = config.trainer.device
    if config.trainer.nnodes > 1 and not os.environ.get("RAY_ADDRESS"):
        raise UserError(
            f"trainer.nnodes={config.trainer.nnodes} needs a Ray cluster: start it (ray start --head, then ray start --address=HEAD:6379 "
            "on the other nodes) and set RAY_ADDRESS=HEAD:6379."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        here = torch.cuda.device_count()
        if here == 0:
            raise UserError(
                "trainer.device=cuda, but this machine shows no GPU to PyTorch: trainer.device=cpu, or a PyTorch build with CUDA."
            )
        if config.trainer.nnodes == 1 and config.trainer.n_gpus_per_node > here:
            raise UserError(
                f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}, but {here} are visible: lower it (N_GPUS_PER_NODE)."
            )
    return device


def compute_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Return what student, teacher and sampler compute in: `fsdp_config.param_dtype`; auto is bfloat16 on GPU, float32 on CPU."""
    name = config.actor_rollout_ref.actor.fsdp_config.param_dtype
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, name)


def build_engine(config: Config, device: str) -> Engine:
    """Return the engine `rollout.name`, with the student's initial weights."""
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    chat = models.load_chat(model.path, {}, trust_remote_code=model.trust_remote_code)
    return engines.engine_class(rollout.name)(
        model.path,
        stop_ids=chat.stop_ids(models.generation_eos(model.path)),
        device=device,
        dtype=compute_dtype(config, torch.device(device)),
        max_num_seqs=rollout.max_num_seqs,
        trust_remote_code=model.trust_remote_code,
    )


def use_threads(processes: int) -> None:
    """Give this process its part of the cores. Ray would give one thread; torch alone would give all to each."""
    torch.set_num_threads(max(1, cores() // processes))
