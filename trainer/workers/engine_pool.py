"""The engines of a run as Ray actors: prompts spread over them, weights given to them, one that dies started again."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from trainer.config.schema import Config
from trainer.engines.base import Response, Sampling
from trainer.workers.base import compare_checksums
from trainer.workers.ray_calls import Calls, Unanswered, WorkerDied, own_log
from trainer.workers.setup import build_engine, compute_dtype, use_threads

POLL_SECONDS = 0.2  # how often a long wait looks up


@dataclass
class _Stream:
    """What one engine is generating: which (prompt, sample) its answers are, which of them are out, when it was heard last."""

    items: Any
    prompts: list[int]
    samples: list[list[int]]
    left: set[tuple[int, int]]
    heard: float = field(default_factory=time.monotonic)


class EnginePool:
    """`place(worker class, i)` starts an engine's process where engine i belongs, `gpus[i]` are the GPUs it is to see."""

    def __init__(
        self, config: Config, device: str, calls: Calls, place: Callable[[Any, int], Any], count: int, gpus: Sequence[Sequence[str]] = ()
    ) -> None:
        self.config, self.device, self.calls, self.place, self.gpus = config, device, calls, place, gpus
        self.timeout = config.actor_rollout_ref.rollout.engine_timeout
        self.restarts, self.death = 0, ""
        self.weights: tuple[Any, dict[str, int]] | None = None  # where the current ones lie, and their checksums
        self.publish: Callable[[], tuple[Any, dict[str, int]]] | None = None  # brings them there where they came another way
        self.engines = [place(Sampler, e) for e in range(count)]

    def starting(self) -> list[Any]:
        """Begin to start all engines; return what to wait for."""
        return [self._starting(e) for e in range(len(self.engines))]

    def _starting(self, e: int) -> Any:
        log = self.calls.register(self.engines[e], f"engine-{e}")
        return self.engines[e].start.remote(self.config, self.device, log, self.gpus[e] if self.gpus else None)

    def watched(self) -> list[str]:
        """Return the names of the tensors whose checksums the engines give."""
        return self.calls.get(self.engines[0].call.remote("watched"))

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses as they finish. An engine that dies, or is silent for `rollout.engine_timeout`, is started
        again once in a run, and what it had not finished is sampled again from the same seeds."""
        by_length = sorted(range(len(prompts)), key=lambda p: -len(prompts[p]))
        streams: dict[int, _Stream] = {}

        def ask(e: int, wanted: set[tuple[int, int]]) -> None:
            mine = [p for p in by_length if any((p, s) in wanted for s in range(len(seeds[p])))]
            samples = [[s for s in range(len(seeds[p])) if (p, s) in wanted] for p in mine]
            chosen = [[seeds[p][s] for s in ss] for p, ss in zip(mine, samples, strict=True)]
            items = self.engines[e].generate.remote([prompts[p] for p in mine], chosen, sampling)
            streams[e] = _Stream(items, mine, samples, wanted)

        for e in range(len(self.engines)):
            wanted = {(p, s) for p in by_length[e :: len(self.engines)] for s in range(len(seeds[p]))}
            if wanted:
                ask(e, wanted)
        while streams:
            items = [stream.items for stream in streams.values()]
            ready, _ = ray.wait(items, num_returns=1, timeout=POLL_SECONDS)
            if ready:  # one that has much to say must not make the others look silent
                ready, _ = ray.wait(items, num_returns=len(items), timeout=0)
            else:
                yield []
            for e, stream in list(streams.items()):
                try:
                    if any(stream.items is item for item in ready):
                        yield self._next(stream)
                    elif time.monotonic() - stream.heard > self.timeout:
                        raise self.calls.death(
                            f"engine-{e}", f"no token for {self.timeout:g} s (actor_rollout_ref.rollout.engine_timeout)."
                        )
                except StopIteration:
                    del streams[e]
                except (WorkerDied, ray.exceptions.RayTaskError) as error:  # the latter: out of GPU memory, for example
                    self._restart(e, error if isinstance(error, WorkerDied) else self.calls.death(f"engine-{e}", str(error)))
                    ask(e, stream.left)
                    for other in streams.values():  # nobody was listened to meanwhile
                        other.heard = time.monotonic()
                    break

    def _next(self, stream: _Stream) -> list[Response]:
        """Return what has just come, under the caller's names. Raises StopIteration, WorkerDied."""
        finished: list[Response] = self.calls.get(next(stream.items))
        stream.heard = time.monotonic()
        out = []
        for r in finished:
            where = stream.prompts[r.prompt], stream.samples[r.prompt][r.sample]
            stream.left.remove(where)
            out.append(Response(*where, r.token_ids, r.sampler_logp, r.finished))
        return out

    def _restart(self, e: int, death: WorkerDied) -> None:
        """Start engine e again with the current weights. Raises the death itself the second time."""
        ray.kill(self.engines[e])
        if self.restarts:
            raise death
        self.restarts, self.death = self.restarts + 1, str(death)
        self.engines[e] = self.place(Sampler, e)
        self.calls.all([self._starting(e)])
        if self.weights is None and self.publish is not None:
            self.weights = self.publish()
        if self.weights is not None:
            self._load([e], *self.weights)

    def load(self, reference: Any, sent: dict[str, int]) -> None:
        """Give all engines the weights that lie in the object store. Raises SyncError if what arrived is something else."""
        self.weights = reference, sent
        self._load(range(len(self.engines)), reference, sent)

    def _load(self, engines: Sequence[int], reference: Any, sent: dict[str, int]) -> None:
        self._each(lambda e: self.engines[e].load_weights.remote([reference]), engines)
        self.check(sent, engines)

    def check(self, sent: dict[str, int], engines: Sequence[int] | None = None) -> None:
        """Raise SyncError if an engine does not hold what these checksums are of."""
        chosen = range(len(self.engines)) if engines is None else engines
        arrived = self._each(lambda e: self.engines[e].call.remote("checksums"), chosen)
        for e, sums in zip(chosen, arrived, strict=True):
            compare_checksums(sent, sums, engine=e)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all engines and return their results."""
        return self._each(lambda e: self.engines[e].call.remote(method, *arguments), range(len(self.engines)))

    def _each(self, ask: Callable[[int], Any], engines: Sequence[int]) -> list[Any]:
        """Ask engines for something that can be asked twice; one found dead is started again first."""
        while True:
            asked = {ask(e): e for e in engines}
            try:
                return self.calls.all(list(asked), self.timeout)
            except Unanswered as silence:
                e = asked[silence.references[0]]
                self._restart(e, self.calls.death(f"engine-{e}", f"no answer for {self.timeout:g} s (rollout.engine_timeout)."))
            except WorkerDied as death:
                if not death.name.startswith("engine-"):
                    raise
                self._restart(int(death.name.removeprefix("engine-")), death)


@ray.remote
class Sampler:
    """An engine in its own process."""

    def start(self, config: Config, device: str, log: str, gpus: Sequence[str] | None) -> None:
        own_log(log)
        if gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # before CUDA is first used here
        if device == "cpu":
            use_threads(1)  # the actor's ranks are idle while the engine works
        self.engine = build_engine(config, device)
        self.dtype = compute_dtype(config, torch.device(device))

    @ray.method(num_returns="streaming")
    def generate(self, prompts: list[np.ndarray], seeds: list[list[int]], sampling: Sampling) -> Iterator[list[Response]]:
        yield from self.engine.generate(prompts, seeds, sampling)

    def load_weights(self, where: list[Any]) -> None:
        held = ray.get(where[0])
        self.engine.load_weights({name: to_torch(array, self.dtype) for name, array in held.items()})

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the engine by name."""
        return getattr(self.engine, method)(*arguments)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return what Ray can share without a copy: numpy has no bfloat16, so bytes of the same width travel."""
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Return the tensor of which `to_numpy` made the array."""
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == torch.bfloat16 else tensor
