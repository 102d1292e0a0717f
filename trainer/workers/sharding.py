"""FSDP2 (`fully_shard`) around a model, on any number of ranks, one included: the same code path everywhere."""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from trainer.models import ForestLM


def join(rank: int, world_size: int, device: torch.device, address: str | None = None) -> DeviceMesh:
    """Join the process group (nccl on GPU, gloo on CPU) and return its mesh. `address` is rank 0's host:port."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if world_size == 1:
            if backend == "gloo":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size)
    return init_device_mesh(device.type, (world_size,))


def shard(
    lm: nn.Module,
    *,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype,
    reshard_after_forward: bool,
    checkpointing: bool = False,
    compiled: bool = False,
) -> ForestLM:
    """Shard a language model over the mesh: shards in its own dtype, computed in `compute_dtype`, gradients reduced in fp32.

    `lm` is on the CPU; rank 0's weights count, the other ranks receive them. `compiled` compiles each layer for
    forests of any size.
    """
    state = {f"lm.{name}": tensor.clone() for name, tensor in lm.state_dict().items()} if mesh.size() > 1 and mesh.get_rank() == 0 else {}
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = ForestLM(lm)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in lm.base_model.layers:
        if compiled:
            layer.compile(dynamic=True)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # the root holds embeddings and head; they stay whole from the forward pass to the end of the backward pass
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # loss weights are global already: ranks add up, they are not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    if mesh.size() > 1:
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


def reshard(model: ForestLM) -> None:
    """Let every part of the model go back to shards; a pass may have left parts of it whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def move(model: ForestLM, device: torch.device | str) -> None:
    """Bring a model's shards to a device: the host, where they rest, or the one that computes."""
    reshard(model)
    model.to(device)


def move_moments(optimizer: torch.optim.Optimizer, device: torch.device | str) -> None:
    """Bring an optimizer's moments to a device; its step counters stay where they are."""
    for state in optimizer.state.values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                state[name] = value.to(device)


def whole_weights(model: ForestLM, dtype: torch.dtype, *, keep: bool = True, only: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Return all parameters under the language model's own names, whole, on the CPU; nothing where `keep` is False.

    Collective: every rank calls it, one tensor is whole at a time.
    """
    weights = {}
    for name, parameter in model.lm.named_parameters():
        if only is not None and name not in only and not name.endswith("embed_tokens.weight"):
            continue
        tensor = parameter.detach()
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            weights[name] = whole.to("cpu", dtype, copy=True)
    return weights


@torch.no_grad()
def update_average(average: ForestLM, model: ForestLM, rate: float) -> None:
    """Move the teacher's shards toward the student's: teacher <- (1 - rate) teacher + rate student, in fp32."""
    reshard(average)
    reshard(model)
    theirs = dict(model.named_parameters())
    for name, parameter in average.named_parameters():
        parameter.to_local().lerp_(theirs[name].detach().to_local(), rate)
