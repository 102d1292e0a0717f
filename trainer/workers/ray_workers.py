"""Actor ranks and engines as Ray actors: one to many GPUs and nodes, or processes on a CPU.

The driver never waits for a list of results in order: when one rank dies the others hang in a collective, so it
takes whichever result or error comes first.
"""

import faulthandler
import logging
import os
import re
import socket
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import Tensor

from trainer.batching import Plan
from trainer.config.schema import Config
from trainer.engines.base import Response, Sampling, checksums
from trainer.errors import UserError
from trainer.machine import cores
from trainer.types import Batch
from trainer.workers.actor import Actor
from trainer.workers.base import Report, Share, Workers, compare_checksums, merge, shares
from trainer.workers.setup import build_engine, compute_dtype, use_threads

POLL_SECONDS = 0.2  # how often a long wait looks up
DEATH_SECONDS = 5.0  # how long after a rank's error another's death may become known


class WorkerDied(Exception):
    """A worker process ended without an exception of its own (killed, out of memory, crashed in native code)."""


class RayWorkers(Workers):
    """W actor ranks and the engines beside them: one per GPU, one in all on a CPU. Colocated: each pair shares its GPU.

    Each process writes what it prints to LOG_DIR/workers/<name>.log.
    """

    def __init__(self, config: Config, device: str, *, trains: bool = True) -> None:
        self.world_size = config.trainer.world_size
        gpu, address = device == "cuda", os.environ.get("RAY_ADDRESS")
        logging.getLogger("ray").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first error is reported; the others follow from it
        try:
            ray.init(
                address=address or "local",  # never a cluster that happens to be found
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                **({} if address else {"num_cpus": max(cores(), 2 * self.world_size)}),
            )
            there = ray.cluster_resources().get("GPU", 0)
            if gpu and there < self.world_size:
                raise UserError(
                    f"trainer.n_gpus_per_node={config.trainer.n_gpus_per_node} x trainer.nnodes={config.trainer.nnodes} GPUs are asked "
                    f"for, the Ray cluster has {there:g}: start Ray on all nodes, or lower them."
                )
            bundle = {"GPU": 1.0, "CPU": 1.0} if gpu else {"CPU": 1.0}
            self.group = placement_group([bundle] * self.world_size, strategy="PACK")
            ray.get(self.group.ready())

            def placed(worker: Any, bundle: int) -> Any:
                where = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
                return worker.options(num_cpus=0.5, num_gpus=0.5 if gpu else 0, scheduling_strategy=where).remote()

            self.ranks = [placed(_Rank, rank) for rank in range(self.world_size if trains else 0)]
            self.engines = [placed(_Sampler, i) for i in range(self.world_size if gpu else 1)]
            self.logs = Path(config.trainer.log_dir).resolve() / "workers"
            self.names = {worker._actor_id.hex(): f"rank-{i}" for i, worker in enumerate(self.ranks)}
            self.names |= {worker._actor_id.hex(): f"engine-{i}" for i, worker in enumerate(self.engines)}
            rendezvous = self._all([rank.address.remote() for rank in self.ranks[:1]])
            processes = 1 if gpu else config.trainer.n_gpus_per_node
            started = [
                worker.start.remote(config, rank, self.world_size, device, rendezvous[0], processes, self._log(worker))
                for rank, worker in enumerate(self.ranks)
            ]
            self._all([*started, *(engine.start.remote(config, device, self._log(engine)) for engine in self.engines)])
        except BaseException:
            ray.shutdown()
            raise

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        by_length = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        streams = {}
        for e, engine in enumerate(self.engines):
            mine = by_length[e :: len(self.engines)]
            if mine:
                streams[engine.generate.remote([prompts[p] for p in mine], [seeds[p] for p in mine], sampling)] = mine
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=POLL_SECONDS, fetch_local=True)
            if not ready:
                yield []
            for stream in ready:
                try:
                    finished: list[Response] = self._get(next(stream))
                except StopIteration:
                    del streams[stream]
                    continue
                mine = streams[stream]
                yield [Response(mine[r.prompt], r.sample, r.token_ids, r.sampler_logp, r.finished) for r in finished]

    def update(self, batch: Batch, plan: Plan, learning_rate: float) -> Report:
        self._all([engine.sleep.remote() for engine in self.engines])
        parts = shares(batch, plan)
        reports = self._all([rank.update.remote(part, learning_rate) for rank, part in zip(self.ranks, parts, strict=True)])
        self._all([engine.wake.remote() for engine in self.engines])
        return merge(reports)

    def sync(self) -> None:
        if not self.ranks:
            return  # validation only: the engines hold the weights they started with
        published = self._all([rank.publish.remote() for rank in self.ranks])
        reference, sent = published[0]
        arrived = self._all([engine.load_weights.remote([reference]) for engine in self.engines])
        for e, sums in enumerate(arrived):
            compare_checksums(sent, sums, engine=e)

    def save(self, folder: Path) -> None:
        self._all([rank.save.remote(str(folder.resolve())) for rank in self.ranks])

    def load(self, folder: Path) -> None:
        self._all([rank.load.remote(str(folder.resolve())) for rank in self.ranks])

    def close(self) -> None:
        for worker in [*self.ranks, *self.engines]:
            ray.kill(worker)
        remove_placement_group(self.group)
        ray.shutdown()

    def _all(self, references: Sequence[Any]) -> list[Any]:
        """Return all results in order, raising the first error to come, whichever worker it comes from."""
        results, waiting = {}, list(references)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            for reference in ready:
                try:
                    results[reference] = self._get(reference)
                except ray.exceptions.RayTaskError:
                    self._raise_death(waiting)
                    raise
        return [results[reference] for reference in references]

    def _raise_death(self, others: Sequence[Any]) -> None:
        """Raise WorkerDied if one of the others is dead: a rank's error in a collective is then but its consequence."""
        ended = ray.wait(list(others), num_returns=len(others), timeout=DEATH_SECONDS)[0] if others else []
        for reference in ended:
            with suppress(ray.exceptions.RayTaskError):
                self._get(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            name = self.names.get(error.actor_id or "", "a worker")
            log = self.logs / f"{name}.log"
            tail = log.read_text(errors="replace").splitlines()[-20:] if log.is_file() else []
            reason = str(error).split("The actor is dead because", 1)[-1].strip()
            raise WorkerDied(
                "\n".join([f"{name} died: {reason}", f"the end of {log}:" if tail else f"it printed nothing to {log}", *tail])
            ) from None

    def _log(self, worker: Any) -> str:
        return str(self.logs / f"{self.names[worker._actor_id.hex()]}.log")


def _own_log(path: str) -> None:
    """Send what this process prints, native crashes included, to a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable()


@ray.remote
class _Rank:
    """One actor rank in its own process."""

    def address(self) -> str:
        with closing(socket.socket()) as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def start(self, config: Config, rank: int, world_size: int, device: str, address: str, processes: int, log: str) -> None:
        _own_log(log)
        if device == "cpu":
            use_threads(processes)
        self.actor = Actor(config, rank=rank, world_size=world_size, device=device, address=address)
        self.dtype = compute_dtype(config, torch.device(device))

    def update(self, share: Share, learning_rate: float) -> Report:
        return self.actor.update(share, learning_rate)

    def publish(self) -> tuple[Any, dict[str, int]] | None:
        """Put the weights into the object store, shared memory on this host; rank 0 returns where and their checksums."""
        weights = self.actor.weights(self.dtype)
        if self.actor.rank != 0:
            return None
        return ray.put({name: _to_numpy(tensor) for name, tensor in weights.items()}), checksums(weights, self.dtype)

    def save(self, folder: str) -> None:
        self.actor.save(folder)

    def load(self, folder: str) -> None:
        self.actor.load(folder)


@ray.remote
class _Sampler:
    """An engine in its own process."""

    def start(self, config: Config, device: str, log: str) -> None:
        _own_log(log)
        if device == "cpu":
            use_threads(1)  # the actor's ranks are idle while the engine works
        self.engine = build_engine(config, device)
        self.dtype = compute_dtype(config, torch.device(device))

    @ray.method(num_returns="streaming")
    def generate(self, prompts: list[np.ndarray], seeds: list[list[int]], sampling: Sampling) -> Iterator[list[Response]]:
        yield from self.engine.generate(prompts, seeds, sampling)

    def load_weights(self, where: list[Any]) -> dict[str, int]:
        held = ray.get(where[0])
        return self.engine.load_weights({name: _to_torch(array, self.dtype) for name, array in held.items()})

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()


def _to_numpy(tensor: Tensor) -> np.ndarray:
    # Ray reads numpy arrays from shared memory without a copy; numpy has no bfloat16, so bytes of the same width travel
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_torch(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor


def explain(error: BaseException) -> str:
    """Return what broke, in the words of the process it broke in: its own traceback, or how it died."""
    if isinstance(error, WorkerDied):
        return str(error)
    if isinstance(error, ray.exceptions.RayTaskError):
        return re.sub(r"\x1b\[\d+m", "", str(error))
    return "".join(traceback.format_exception(error))
