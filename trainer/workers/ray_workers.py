"""Actor ranks and engines as Ray actors: one to many GPUs and nodes, or processes on a CPU."""

import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from trainer.batching import Plan
from trainer.config.schema import Config
from trainer.engines.base import Response, Sampling, corner_checksums
from trainer.errors import UserError
from trainer.machine import cores
from trainer.types import Batch
from trainer.workers.actor import Actor
from trainer.workers.base import Report, Share, Workers, merge, shares
from trainer.workers.engine_pool import EnginePool, to_numpy
from trainer.workers.ray_calls import Calls, own_log
from trainer.workers.setup import compute_dtype, engine_count, transfer_kind, use_threads
from trainer.workers.sharding import reshard


class RayWorkers(Workers):
    """W actor ranks and the engines.

    Colocated (`rollout.n_gpus` 0): each engine shares the GPUs of `tensor_model_parallel_size` ranks and sleeps while
    they train; on a CPU there is one. Split: the engines have `rollout.n_gpus` GPUs of their own, on a CPU processes.
    """

    def __init__(self, config: Config, device: str, *, trains: bool = True) -> None:
        self.world_size, rollout = config.trainer.world_size, config.actor_rollout_ref.rollout
        self.split, self.tensor_parallel = rollout.n_gpus > 0, rollout.tensor_model_parallel_size
        gpu, engines = device == "cuda", engine_count(config, device)
        self.order = threading.Lock()
        self.calls = Calls(Path(config.trainer.log_dir).resolve() / "workers")
        bundles = [{"GPU": 1.0, "CPU": 1.0} if gpu else {"CPU": 1.0}] * (self.world_size if trains else 0)
        apart, ranks = self.split or not trains, len(bundles)
        if apart:
            bundles += [{"GPU": float(self.tensor_parallel), "CPU": 1.0} if gpu else {"CPU": 1.0}] * engines
        start_ray(sum(bundle.get("GPU", 0.0) for bundle in bundles), cpus=len(bundles) + self.world_size)
        try:
            self.group = placement_group(bundles, strategy="PACK")
            ray.get(self.group.ready())

            def placed(worker: Any, bundle: int, gpus: float) -> Any:
                where = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
                return worker.options(num_cpus=0.5, num_gpus=gpus if gpu else 0, scheduling_strategy=where).remote()

            def place_engine(worker: Any, e: int) -> Any:
                if apart:
                    return placed(worker, ranks + e, self.tensor_parallel)
                # one that spans several ranks' GPUs is told which they are: Ray gives it none
                return placed(worker, e * self.tensor_parallel, 0.5 if self.tensor_parallel == 1 else 0)

            self.ranks = [placed(_Rank, rank, 1 if self.split else 0.5) for rank in range(ranks)]
            logs = [self.calls.register(rank, f"rank-{i}") for i, rank in enumerate(self.ranks)]
            where = self.calls.all([rank.where.remote() for rank in self.ranks])
            spans = _gpus_of_engines(where, self.tensor_parallel) if gpu and not apart and self.tensor_parallel > 1 else ()
            self.pool = EnginePool(config, device, self.calls, place_engine, engines, spans)
            address, processes = (where[0][0] if where else None), (1 if gpu else config.trainer.n_gpus_per_node)

            def starting_ranks() -> list[Any]:
                start = (config, self.world_size, device, address, processes)
                return [rank.start.remote(i, logs[i], *start) for i, rank in enumerate(self.ranks)]

            if gpu and not apart:  # an engine measures its GPU's free memory: it does so alone, and gives back what it took
                self.calls.all(self.pool.starting())
                self.watched = self.pool.watched()
                self.pool.call("sleep")
                self.calls.all(starting_ranks())
            else:
                self.calls.all([*starting_ranks(), *self.pool.starting()])
                self.watched = self.pool.watched()
            if self.ranks:
                self.pool.publish = self._publish
            self.transfer = transfer_kind(config, device) if trains else None
            if self.transfer:
                self._open_transfer()
        except BaseException:
            ray.shutdown()
            raise

    def _open_transfer(self) -> None:
        address = self.calls.get(self.ranks[0].where.remote())[0]
        self.calls.all([rank.open_transfer.remote(self.transfer, self.pool.engines, self.tensor_parallel, address) for rank in self.ranks])

    @property
    def restarts(self) -> int:
        return self.pool.restarts

    @property
    def death(self) -> str:
        return self.pool.death

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        return self.pool.generate(prompts, seeds, sampling)

    def update(self, batch: Batch, plan: Plan, learning_rate: float) -> Report:
        if not self.split:
            self.pool.call("sleep")
        parts = shares(batch, plan)
        with self.order:
            asked = [rank.update.remote(part, learning_rate) for rank, part in zip(self.ranks, parts, strict=True)]
        return merge(self.calls.all(asked))

    def score(self, batch: Batch, plan: Plan) -> dict[int, np.ndarray]:
        if not self.split:
            self.pool.call("sleep")
        scored = self.calls.all([rank.score.remote(part) for rank, part in zip(self.ranks, shares(batch, plan), strict=True)])
        return {i: logp for scores in scored for i, logp in scores.items()}

    def sync(self) -> None:
        if not self.ranks:
            return  # validation only: the engines hold the weights they started with
        self.pool.call("wake", "weights")
        if self.transfer and not self.pool.restarts:  # vLLM's groups do not outlive one of their members
            self.calls.all(self._to_ranks("send"), self.pool.timeout)
            sent = self.calls.all(self._to_ranks("checksums", self.watched))[0]
            self.pool.check(sent)
        else:
            self.pool.weights = None  # the last ones need not lie in memory beside the new ones
            self.pool.load(*self._publish())
        self.pool.call("wake", "kv_cache")

    def _publish(self) -> tuple[Any, dict[str, int]]:
        """Have the student's weights laid into shared memory; return where, and their checksums."""
        return self.calls.all(self._to_ranks("publish", self.watched))[0]

    def _to_ranks(self, method: str, *arguments: Any) -> list[Any]:
        """Call a collective method of all ranks; an engine's restart may do so from another thread, and ranks must agree on the order."""
        with self.order:
            return [getattr(rank, method).remote(*arguments) for rank in self.ranks]

    def save(self, folder: Path) -> None:
        self.calls.all([rank.save.remote(str(folder.resolve())) for rank in self.ranks])

    def load(self, folder: Path) -> None:
        self.calls.all([rank.load.remote(str(folder.resolve())) for rank in self.ranks])

    def close(self) -> None:
        for worker in [*self.ranks, *self.pool.engines]:
            ray.kill(worker)
        remove_placement_group(self.group)
        ray.shutdown()


def start_ray(gpus: float, cpus: int) -> None:
    """Start Ray here, or join the cluster RAY_ADDRESS names. Raises UserError if the cluster has fewer GPUs."""
    address = os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is reported; the others follow from it
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets verified programs take the cores from ranks and engines
    try:
        ray.init(
            address=address or "local",  # never a cluster that happens to be found
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            **({} if address else {"num_cpus": max(cores(), cpus)}),
        )
        there = ray.cluster_resources().get("GPU", 0)
        if there < gpus:
            raise UserError(
                f"trainer.n_gpus_per_node x trainer.nnodes and actor_rollout_ref.rollout.n_gpus ask for {gpus:g} GPUs in all, the Ray "
                f"cluster has {there:g}: start Ray on all nodes, or lower them."
            )
    except BaseException:
        ray.shutdown()
        raise


def _gpus_of_engines(where: Sequence[tuple[str, str, list[int]]], tensor_parallel: int) -> list[list[str]]:
    """Return the GPUs of each engine that spans several ranks. Raises UserError if they are on different nodes."""
    spans = [where[i : i + tensor_parallel] for i in range(0, len(where), tensor_parallel)]
    for span in spans:
        if len({node for _, node, _ in span}) > 1:
            raise UserError(
                f"actor_rollout_ref.rollout.tensor_model_parallel_size={tensor_parallel}: an engine's GPUs must be on one node; "
                "trainer.n_gpus_per_node must be a multiple of it."
            )
    return [[str(index) for _, _, ids in span for index in ids] for span in spans]


@ray.remote
class _Rank:
    """One actor rank in its own process."""

    def where(self) -> tuple[str, str, list[int]]:
        """Return an address with a free port, the node and the GPUs of this process."""
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            address = f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"
        return address, ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    def start(self, rank: int, log: str, config: Config, world_size: int, device: str, address: str, processes: int) -> None:
        own_log(log)
        if device == "cpu":
            use_threads(processes)
        self.actor = Actor(config, rank=rank, world_size=world_size, device=device, address=address)
        self.dtype = compute_dtype(config, torch.device(device))

    def update(self, share: Share, learning_rate: float) -> Report:
        return self.actor.update(share, learning_rate)

    def score(self, share: Share) -> dict[int, np.ndarray]:
        return self.actor.score(share)

    def publish(self, watched: list[str]) -> tuple[Any, dict[str, int]] | None:
        """Put the weights into the object store, shared memory on this host; rank 0 returns where and their checksums."""
        weights = self.actor.weights(self.dtype)
        if self.actor.rank != 0:
            return None
        return ray.put({name: to_numpy(tensor) for name, tensor in weights.items()}), corner_checksums(weights, watched, self.dtype)

    def checksums(self, watched: list[str]) -> dict[str, int] | None:
        """Return on rank 0 the checksums of the watched weights."""
        weights = self.actor.weights(self.dtype, only=watched)
        return corner_checksums(weights, watched, self.dtype) if self.actor.rank == 0 else None

    def open_transfer(self, kind: str, engines: Sequence[Any], tensor_parallel: int, address: str) -> None:
        from trainer.workers.transfer import StudentWeights, open_transfer

        source = StudentWeights(self.actor.student, self.dtype)
        self.sender = open_transfer(
            kind, rank=self.actor.rank, engines=engines, tensor_parallel=tensor_parallel, address=address, source=source
        )

    def send(self) -> None:
        with self.actor.at_work():
            reshard(self.actor.student)
            self.sender.send_weights()

    def save(self, folder: str) -> None:
        self.actor.save(folder)

    def load(self, folder: str) -> None:
        self.actor.load(folder)
