"""Engines as processes, vLLM's for real: prompts spread over two of them, and what happens when one dies or stands still."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from tests.tools import overrides
from trainer import config
from trainer.engines.base import Sampling, corner_checksums
from trainer.errors import UserError
from trainer.workers.base import SyncError
from trainer.workers.engine_pool import EnginePool, to_numpy
from trainer.workers.ray_calls import Calls, WorkerDied
from trainer.workers.ray_workers import start_ray

pytestmark = pytest.mark.slow
PROMPTS = [np.random.default_rng(p).integers(8, 20, 10 + p).astype(np.int32) for p in range(16)]
SEEDS = [[100 * p + s for s in range(16)] for p in range(16)]
SAMPLING = Sampling(max_tokens=60)


@pytest.fixture
def pool(guessing_model, chains_data, tmp_path):
    out = tmp_path / "pool"
    more = ("actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n_gpus=2", "data.max_response_length=60")
    cfg = config.load("sdpo", overrides(guessing_model, chains_data, out, *more))
    start_ray(gpus=0, cpus=4)
    calls = Calls(out / "workers")
    pool = EnginePool(cfg, "cpu", calls, lambda worker, e: worker.options(num_cpus=0.5).remote(), 2)
    calls.all(pool.starting())
    yield pool
    ray.shutdown()


@pytest.fixture
def weights(guessing_model):
    return {name: p + 0.02 for name, p in AutoModelForCausalLM.from_pretrained(guessing_model, dtype=torch.float32).named_parameters()}


def load(pool: EnginePool, weights) -> None:
    reference = ray.put({name: to_numpy(tensor.detach()) for name, tensor in weights.items()})
    pool.load(reference, corner_checksums(weights, pool.watched(), torch.float32))


def processes() -> dict[str, psutil.Process]:
    """The engines by what their log is called."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        if "Sampler" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
            found[Path(os.readlink(f"/proc/{process.pid}/fd/1")).stem] = process
    return found


def collect(pool: EnginePool, *, after_first=lambda: None, after_each=lambda out: None) -> dict[tuple[int, int], list[int]]:
    out = {}
    for responses in pool.generate(PROMPTS, SEEDS, SAMPLING):
        if responses and not out:
            after_first()
        for response in responses:
            assert (response.prompt, response.sample) not in out
            out[response.prompt, response.sample] = response.token_ids.tolist()
        after_each(out)
    assert len(out) == 256
    return out


def test_what_can_go_wrong_with_an_engine(pool, weights, tmp_path):
    """One test, so that the two engines are started once."""
    other_weights_than_the_students_are_seen(pool, weights)
    an_engine_that_cannot_start_says_why(pool, tmp_path)
    one_that_dies_or_stands_still_is_started_again_once(pool, weights)


def other_weights_than_the_students_are_seen(pool, weights):
    reference = ray.put({name: to_numpy(tensor.detach()) for name, tensor in weights.items()})
    moved = {name: tensor + 1e-6 for name, tensor in weights.items()}
    with pytest.raises(SyncError, match="engine 0 holds other values than the student in lm_head"):
        pool.load(reference, corner_checksums(moved, pool.watched(), torch.float32))


def an_engine_that_cannot_start_says_why(pool, tmp_path):
    rollout = replace(pool.config.actor_rollout_ref.rollout, max_model_len=1 << 20)
    cfg = replace(pool.config, actor_rollout_ref=replace(pool.config.actor_rollout_ref, rollout=rollout))
    other = EnginePool(cfg, "cpu", Calls(tmp_path), pool.place, 1)
    with pytest.raises(UserError, match=r"vLLM does not start with [\s\S]*1048576"):
        other.calls.all(other.starting())
    ray.kill(other.engines[0])


def one_that_dies_or_stands_still_is_started_again_once(pool, weights):
    load(pool, weights)
    wanted = collect(pool)
    before = processes()
    assert before.keys() == {"engine-0", "engine-1"}
    assert {process.nice() for process in before.values()} == {psutil.Process().nice()}  # not behind all else, where Ray puts them

    assert collect(pool, after_first=before["engine-1"].kill) == wanted  # the same seeds, the same weights
    assert pool.restarts == 1 and pool.death.startswith("engine-1 died: ")
    now = processes()
    assert now["engine-0"].pid == before["engine-0"].pid and now["engine-1"].pid != before["engine-1"].pid

    pool.restarts, place = 0, pool.place
    of_engine_1 = {(p, s) for p in range(0, 16, 2) for s in range(16)}  # every other prompt, the longest going to engine 0

    def wait_briefly(out):  # only once engine 1 has nothing left to say: on a busy machine it may well pause for a second
        if of_engine_1 <= out.keys() and not pool.restarts:
            pool.timeout = 1.0

    def start_patiently(worker, e):  # so may a new engine before its first token
        pool.timeout = 600.0
        return place(worker, e)

    pool.place = start_patiently
    assert collect(pool, after_first=lambda: now["engine-0"].send_signal(signal.SIGSTOP), after_each=wait_briefly) == wanted
    assert pool.restarts == 1 and "engine-0 died: no token for 1 s (actor_rollout_ref.rollout.engine_timeout)" in pool.death
    assert not now["engine-0"].is_running() or now["engine-0"].status() == psutil.STATUS_ZOMBIE

    pool.restarts = 0
    processes()["engine-1"].kill()  # while it is idle: found dead when it is asked for something
    time.sleep(0.5)
    load(pool, weights)
    assert pool.restarts == 1 and collect(pool) == wanted

    with pytest.raises(WorkerDied, match=r"engine-0 died: [\s\S]*the end of .*engine-0.log:\n"):
        collect(pool, after_first=processes()["engine-0"].kill)
    assert "engine-0" not in processes()
