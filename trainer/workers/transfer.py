"""vLLM's native weight transfer, seen from the actor's ranks: "ipc" where they share GPUs, "nccl" where they do not.

Imports vllm, so it is itself imported only where such a transfer is opened.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from vllm.distributed.weight_transfer import ParamMeta, TrainerWeightTransferEngine, WeightSource, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import materialize_full_tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from trainer.models import ForestLM


class StudentWeights(WeightSource):
    """The student's weights, whole and in the engines' dtype, one tensor at a time; iterating is collective."""

    def __init__(self, model: ForestLM, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self.dtype, tuple(parameter.shape)) for name, parameter in self.model.lm.named_parameters()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self.model.lm.named_parameters():
            yield name, materialize_full_tensor(parameter.detach()).to(self.dtype)


class EngineClient:
    """The four calls vLLM's sender makes, to all engines; each engine's workers have ranks of their own in the nccl group."""

    def __init__(self, engines: Sequence[Any], tensor_parallel: int) -> None:
        self.engines, self.tensor_parallel = engines, tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self.engines]
        for e, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += e * self.tensor_parallel
        self._each("init_weight_transfer_engine", infos)

    def start_weight_update(self) -> None:
        self._each("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._each("update_weights", [update_info] * len(self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._each("finish_weight_update")

    def _each(self, method: str, arguments: Sequence[Any] | None = None) -> None:
        rows = [()] * len(self.engines) if arguments is None else [(argument,) for argument in arguments]
        ray.get([engine.call.remote("transfer", method, *row) for engine, row in zip(self.engines, rows, strict=True)])


def open_transfer(
    kind: str, *, rank: int, engines: Sequence[Any], tensor_parallel: int, address: str, source: StudentWeights
) -> TrainerWeightTransferEngine:
    """Meet the engines and return what sends the weights (`send_weights`); both are collective over the ranks."""
    client = EngineClient(engines, tensor_parallel)
    if kind == "ipc":
        largest = max(math.prod(meta.shape) * meta.dtype.itemsize for meta in source.metadata())
        room = max(1 << 30, largest)  # the buffer must hold the largest tensor whole
        ipc = IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=room)
        return WeightTransferTrainerFactory.trainer_init(ipc, client=client, source=source)
    host, port = address.rsplit(":", 1)
    info = NCCLTrainerInitInfo(rank=rank, master_address=host, master_port=int(port), world_size=1 + len(engines) * tensor_parallel)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
