"""What the tests share: a random tiny model with the real tokenizer recipe, small data, and the settings of a short run."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.tools import ROOT, make_guessing_model, make_random_model, write_chains

os.environ["WANDB_MODE"] = "disabled"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(os.cpu_count() or 1)
settings.register_profile("project", deadline=None, derandomize=True)  # the same cases every time, no timed asserts
settings.load_profile("project")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A tiny Qwen3 with random weights: fine for everything but learning."""
    return make_random_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="session")
def guessing_model(tmp_path_factory) -> Path:
    """A tiny Qwen3 that guesses one of three answers: its groups are mixed."""
    return make_guessing_model(tmp_path_factory.mktemp("models") / "guessing")


@pytest.fixture(scope="session")
def chains_data(tmp_path_factory) -> Path:
    """A folder with train.parquet (64 chains) and test.parquet (16)."""
    return write_chains(tmp_path_factory.mktemp("chains"), train=64, test=16)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data that lies beside the checkout; it is not part of the project."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}")
    return folder
