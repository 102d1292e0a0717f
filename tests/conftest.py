"""What the tests share: a random tiny model with the real tokenizer recipe, small data, and the settings of a short run."""

import os

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # test processes side by side, and all they start, keep to cores of their own: before torch counts them
    order, of = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    there = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, there[order::of] or {there[order % len(there)]})

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tests.tools import ROOT, make_guessing_model, make_random_model, write_chains
from trainer.machine import cores

os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(cores())
settings.register_profile("project", deadline=None, derandomize=True)  # the same cases every time, no timed asserts
settings.load_profile("project")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, those of `test_end_to_end.py` before all: so processes that share the tests end together."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.stem != "test_end_to_end"))


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that makes a folder by name with a maker, or finds it where another test process has made it."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = common / name
        with FileLock(common / f"{name}.lock"):
            if not folder.exists():
                partial = common / f"{name}.partial"
                make(partial)
                partial.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def random_model(once) -> Path:
    """A tiny Qwen3 with random weights: fine for everything but learning."""
    return once("random_model", make_random_model)


@pytest.fixture(scope="session")
def guessing_model(once) -> Path:
    """A tiny Qwen3 that guesses one of three answers: its groups are mixed."""
    return once("guessing_model", make_guessing_model)


@pytest.fixture(scope="session")
def chains_data(once) -> Path:
    """A folder with train.parquet (64 chains) and test.parquet (16)."""
    return once("chains", lambda folder: write_chains(folder, train=64, test=16))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data that lies beside the checkout; it is not part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}")
    return folder
