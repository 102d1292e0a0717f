"""Calls to Ray actors: the first error to come is the one raised, and a death is told with the end of the process's log.

The driver never waits for a list of results in order: when one rank dies the others hang in a collective, so it
takes whichever result or error comes first.
"""

import faulthandler
import os
import re
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from trainer.errors import UserError

DEATH_SECONDS = 5.0  # how long after a rank's error another's death may become known


class WorkerDied(Exception):
    """The worker process `name` ended without an exception of its own (killed, out of memory, crashed in native code)."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Unanswered(Exception):
    """Calls that were not answered in time."""

    def __init__(self, references: Sequence[Any], seconds: float) -> None:
        super().__init__(f"no answer for {seconds:g} s (actor_rollout_ref.rollout.engine_timeout)")
        self.references = references


class Calls:
    """The actors of a run by name, each writing what it prints to LOG_DIR/workers/<name>.log."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._names: dict[str, str] = {}

    def register(self, worker: Any, name: str) -> str:
        """Name an actor and return the path of its log."""
        self._names[worker._actor_id.hex()] = name
        return str(self.log_of(name))

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def get(self, reference: Any) -> Any:
        """Return a result. Raises WorkerDied, the UserError of the worker, or RayTaskError with its traceback."""
        try:
            return ray.get(reference)
        except ray.exceptions.RayActorError as error:
            name = self._names.get(error.actor_id or "", "a worker")
            raise self.death(name, str(error).split("The actor is dead because", 1)[-1].strip()) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise

    def death(self, name: str, reason: str) -> WorkerDied:
        """Return the exception that tells how a worker died and the last it printed."""
        log = self.log_of(name)
        tail = log.read_text(errors="replace").splitlines()[-20:] if log.is_file() else []
        lines = [f"{name} died: {reason}", f"the end of {log}:" if tail else f"it printed nothing to {log}", *tail]
        return WorkerDied(name, "\n".join(lines))

    def all(self, references: Sequence[Any], timeout: float | None = None) -> list[Any]:
        """Return all results in order, raising the first error to come, whichever worker it comes from.

        Raises Unanswered if within `timeout` seconds nothing more comes.
        """
        results, waiting = {}, list(references)
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=timeout)
            if not ready:
                raise Unanswered(waiting, timeout or 0)
            for reference in ready:
                try:
                    results[reference] = self.get(reference)
                except ray.exceptions.RayTaskError:
                    self._raise_death(waiting)
                    raise
        return [results[reference] for reference in references]

    def _raise_death(self, others: Sequence[Any]) -> None:
        """Raise WorkerDied if one of the others is dead: a rank's error in a collective is then but its consequence."""
        ended = ray.wait(list(others), num_returns=len(others), timeout=DEATH_SECONDS)[0] if others else []
        for reference in ended:
            with suppress(ray.exceptions.RayTaskError, UserError):
                self.get(reference)


def own_log(path: str) -> None:
    """Send what this process prints, native crashes included, to a file."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    faulthandler.enable()


def explain(error: BaseException) -> str:
    """Return what broke, in the words of the process it broke in: its own traceback, or how it died."""
    if isinstance(error, WorkerDied):
        return str(error)
    if isinstance(error, ray.exceptions.RayTaskError):
        return re.sub(r"\x1b\[\d+m", "", str(error))
    return "".join(traceback.format_exception(error))
