"""Verifiers in worker processes, each verdict with a hard time limit: a verifier that hangs or dies is killed and
replaced, its verdict is `error`, and the run goes on."""

import functools
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import Future, TimeoutError
from typing import Any

from pebble import ProcessExpired, ProcessPool

from trainer import rewards
from trainer.machine import cores
from trainer.types import Outcome, Verdict

CODE_MARGIN = 30.0  # seconds beyond code_timeout in which the verifier itself should have ended


class VerifierPool:
    """Judges responses in parallel.

    `timeout` is a verdict's limit in seconds; for programs it is `options["code_timeout"]` and a margin in which the
    verifier itself says what it knows. `options` are what verifiers read from `extra_info` beside the row's own.
    `custom` is (path, name) of a user's reward function, or None for the table.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        timeout: float = 30.0,
        options: Mapping[str, Any] | None = None,
        custom: tuple[str, str] | None = None,
    ) -> None:
        self.timeout, self.options, self.custom = timeout, dict(options or {}), custom
        # spawn: a worker is a fresh interpreter of some 20 MB, not a copy of the trainer with its threads and memory
        self._pool = ProcessPool(max_workers=workers or cores(), context=multiprocessing.get_context("spawn"))

    def submit(self, data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> "Future[Verdict]":
        """Judge a response; the future's result never raises for what the verifier does."""
        key, limit = "reward.timeout", self.timeout
        if self.custom is None and rewards.is_code(data_source) and "code_timeout" in self.options:
            key, limit = "reward.code_timeout", self.options["code_timeout"] + CODE_MARGIN
        info = {**self.options, **extra_info}
        raw = self._pool.schedule(_judge, args=[self.custom, data_source, response, ground_truth, info], timeout=limit)
        verdict: Future[Verdict] = Future()
        raw.add_done_callback(lambda done: verdict.set_result(self._result(done, data_source, f"{key}={limit:g} s")))
        return verdict

    def _result(self, done: Future, data_source: str, limit: str) -> Verdict:
        try:
            return done.result()
        except TimeoutError:
            reason = f"no verdict within {limit}"
        except ProcessExpired as error:
            reason = f"the verifier process died (exit code {error.exitcode})"
        except Exception as error:  # noqa: BLE001  whatever a verifier raises must not end the run; it is counted as outcome "error"
            reason = f"{type(error).__name__}: {error}"
        return Verdict(Outcome.ERROR, 0.0, 0.0, details={"error": f"{data_source}: {reason}"})

    def close(self) -> None:
        """End the workers, those at work included."""
        self._pool.stop()
        self._pool.join()


def _judge(custom: tuple[str, str] | None, data_source: str, response: str, ground_truth: str, extra_info: Mapping[str, Any]) -> Verdict:
    if custom is not None:
        return _custom(*custom)(data_source, response, ground_truth, extra_info)
    return rewards.verify(data_source, response, ground_truth, extra_info)


@functools.cache
def _custom(path: str, name: str) -> rewards.CustomVerifier:
    return rewards.CustomVerifier(path, name)
