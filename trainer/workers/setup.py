"""What both kinds of workers need to start: devices, threads, the engine of a configuration."""

import os

import torch

from trainer import engines, models
from trainer.config.schema import Config
from trainer.engines.base import Engine, Settings
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
    rollout = config.actor_rollout_ref.rollout
    if device == "cpu" and rollout.tensor_model_parallel_size > 1:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size} is for GPUs; on a CPU it must be 1."
        )
    if not rollout.n_gpus and config.trainer.n_gpus_per_node % rollout.tensor_model_parallel_size:
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={rollout.tensor_model_parallel_size}: an engine shares the GPUs of that "
            f"many ranks, trainer.n_gpus_per_node={config.trainer.n_gpus_per_node} is no multiple of it."
        )
    if device == "cuda":
        here = torch.cuda.device_count()
        if here == 0:
            raise UserError(
                "trainer.device=cuda, but this machine shows no GPU to PyTorch: trainer.device=cpu, or a PyTorch build with CUDA."
            )
        if config.trainer.nnodes == 1 and config.trainer.n_gpus_per_node + rollout.n_gpus > here:
            own = f" and actor_rollout_ref.rollout.n_gpus={rollout.n_gpus} more" if rollout.n_gpus else ""
            raise UserError(
                f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node}{own}, but {here} are visible: lower it (N_GPUS_PER_NODE)."
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
    settings = Settings(
        max_num_seqs=rollout.max_num_seqs,
        max_model_len=max_model_len(config),
        max_num_batched_tokens=rollout.max_num_batched_tokens,
        tensor_parallel=rollout.tensor_model_parallel_size,
        memory_share=rollout.gpu_memory_utilization,
        eager=rollout.enforce_eager,
        sleeps=rollout.n_gpus == 0 and not config.trainer.val_only,
        transfer=transfer_kind(config, device),
        trust_remote_code=model.trust_remote_code,
    )
    return engines.engine_class(rollout.name)(
        model.path,
        stop_ids=chat.stop_ids(models.generation_eos(model.path)),
        device=device,
        dtype=compute_dtype(config, torch.device(device)),
        settings=settings,
    )


def max_model_len(config: Config) -> int:
    """Return how many tokens prompt and response may have together: `rollout.max_model_len`, or both budgets."""
    return config.actor_rollout_ref.rollout.max_model_len or config.data.max_prompt_length + config.data.max_response_length


def engine_count(config: Config, device: str) -> int:
    """Return how many engines there are: GPUs by `tensor_model_parallel_size`; on a CPU `rollout.n_gpus`, at least one."""
    rollout = config.actor_rollout_ref.rollout
    if device == "cpu":
        return max(1, rollout.n_gpus)
    return (rollout.n_gpus or config.trainer.world_size) // rollout.tensor_model_parallel_size


def transfer_kind(config: Config, device: str) -> str | None:
    """Return how weights get into the engines: by vLLM's "ipc" (same GPUs) or "nccl" (GPUs of their own); None: by shared memory."""
    rollout = config.actor_rollout_ref.rollout
    if device == "cpu" or rollout.name != "vllm" or config.trainer.val_only:
        return None
    return "nccl" if rollout.n_gpus else "ipc"


def use_threads(processes: int) -> None:
    """Give this process its part of the cores. Ray would give one thread; torch alone would give all to each."""
    torch.set_num_threads(max(1, cores() // processes))
