"""Which engine is where and how weights get to it: what can be decided without a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from trainer import config, engines
from trainer.engines.base import corner_checksum
from trainer.errors import UserError
from trainer.workers.ray_workers import _gpus_of_engines
from trainer.workers.setup import engine_count, max_model_len, transfer_kind


def settings(*overrides: str):
    return config.load("sdpo", ["actor_rollout_ref.model.path=m", "data.train_files=[d]", *overrides])


@pytest.mark.parametrize(
    ("device", "overrides", "engines", "transfer"),
    [
        ("cpu", (), 1, None),
        ("cpu", ("name=vllm", "n_gpus=3"), 3, None),
        ("cuda", ("name=hf",), 8, None),
        ("cuda", ("name=vllm",), 8, "ipc"),
        ("cuda", ("name=vllm", "tensor_model_parallel_size=4"), 2, "ipc"),
        ("cuda", ("name=vllm", "tensor_model_parallel_size=2", "n_gpus=6"), 3, "nccl"),
    ],
)
def test_how_many_engines_and_how_weights_get_there(device, overrides, engines, transfer):
    cfg = settings("trainer.n_gpus_per_node=8", *(f"actor_rollout_ref.rollout.{override}" for override in overrides))
    assert engine_count(cfg, device) == engines and transfer_kind(cfg, device) == transfer
    cfg = replace(cfg, trainer=replace(cfg.trainer, val_only=True))
    assert transfer_kind(cfg, device) is None  # nothing is trained


def test_an_engine_sees_the_gpus_of_its_ranks():
    where = [("a:1", "node", [2]), ("a:2", "node", [5]), ("a:3", "other", ["GPU-7f"]), ("a:4", "other", [0])]
    assert _gpus_of_engines(where, 2) == [["2", "5"], ["GPU-7f", "0"]]
    with pytest.raises(UserError, match="must be on one node"):
        _gpus_of_engines(where[1:3], 2)


def test_the_length_an_engine_needs():
    assert max_model_len(settings("data.max_prompt_length=30", "data.max_response_length=12")) == 42
    assert max_model_len(settings("actor_rollout_ref.rollout.max_model_len=99")) == 99


@pytest.mark.slow
def test_every_worker_of_every_engine_has_its_own_rank_in_the_transfer(monkeypatch):
    from trainer.workers import transfer

    asked = []
    monkeypatch.setattr(transfer.ray, "get", lambda references: references)
    fakes = [SimpleNamespace(call=SimpleNamespace(remote=lambda *arguments, e=e: asked.append((e, *arguments)))) for e in range(3)]
    client = transfer.EngineClient(fakes, tensor_parallel=2)
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})
    assert [(e, method, name, info["rank_offset"]) for e, method, name, info in asked] == [
        (e, "transfer", "init_weight_transfer_engine", 1 + 2 * e) for e in range(3)
    ]
    asked.clear()
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    client.finish_weight_update()
    assert [call[2] for call in asked[::3]] == ["start_weight_update", "update_weights", "finish_weight_update"]
    assert asked[3] == (0, "transfer", "update_weights", {"names": ["a"]}) and len(asked) == 9


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    engines.check_installed("hf")
    with pytest.raises(UserError, match="vLLM is not installed in this environment"):
        engines.check_installed("vllm")


def test_minus_zero_is_zero_to_a_checksum():
    assert corner_checksum(torch.tensor([0.0, 1.0]), torch.float32) == corner_checksum(torch.tensor([-0.0, 1.0]), torch.float32)
    assert corner_checksum(torch.tensor([0.0, 1.0]), torch.bfloat16) == corner_checksum(torch.tensor([-0.0, 1.0]), torch.bfloat16)
