"""The actor's update is the gradient of the definition, however the batch is cut up and over however many ranks."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tools import ROOT, make_random_model, overrides
from trainer import config, fused
from trainer.batching import make_plan
from trainer.divergence import token_divergence
from trainer.metrics import update_metrics
from trainer.types import Batch, Sample
from trainer.workers.actor import Actor
from trainer.workers.base import merge, shares

KEY = "actor_rollout_ref.actor"


def settings(model: Path, *more: str, name: str = "sdpo"):
    sgd_like = [f"{KEY}.optim.eps=1.0", f"{KEY}.optim.betas=[0.0,0.0]", f"{KEY}.optim.weight_decay=0.0", f"{KEY}.grad_clip=1e6"]
    return config.load(name, overrides(model, Path("data"), Path("out"), *sgd_like, *more, batch=4))


def batch(seed: int = 0, contexts: bool = True, advantages: bool = False) -> Batch:
    """Four groups of four: shared prompts, contexts shared in part, responses of different lengths."""
    rng = np.random.default_rng(seed)

    def ids(length):
        return rng.integers(4, 20, length).astype(np.int32)

    samples = []
    for g in range(4):
        prompt, common, other = ids(10 + g), ids(25), ids(30)
        for i in range(4):
            response = ids(1 if (g, i) == (0, 3) else int(rng.integers(1, 20)))
            sampler = rng.normal(-2, 0.5, len(response)).astype(np.float32)
            context = (common if i else np.concatenate([common[:15], other])) if contexts else None
            samples.append(Sample(f"u{g}", g, i, prompt, response, sampler, context, advantage=float(rng.normal()) if advantages else 0.0))
    return Batch(samples)


def run(cfg, data: Batch, steps: int = 1):
    """Update once or more; return the last report and the student's weights."""
    actor = Actor(cfg)
    plan = make_plan(data, 4, cfg.actor_rollout_ref.actor, world_size=1, max_response_length=40)
    for _ in range(steps):
        report = actor.update(shares(data, plan)[0], 0.1)
    return report, actor.weights(torch.float32), actor


def reference_loss(model: Path, data: Batch, *, sequence_weights: bool = False, temperature: float = 1.0):
    """The sdpo loss written down plainly: one sequence at a time, full logits, float32."""
    student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    count = sum(len(s.response_ids) for s in data.samples)
    loss = torch.zeros(())
    for s in data.samples:

        def logits(lm, prompt, s=s):
            path = torch.from_numpy(np.concatenate([prompt, s.response_ids]).astype(np.int64))[None]
            return lm(path).logits[0, len(prompt) - 1 : -1] / temperature

        own = logits(student, s.prompt_ids)
        with torch.no_grad():
            target = logits(teacher, s.context_ids)
        divergence = token_divergence(own, target, alpha=0.5, topk=16, add_tail=True)
        sampled = own.detach().log_softmax(-1).gather(-1, torch.from_numpy(s.response_ids).long()[:, None])[:, 0]
        log_ratio = sampled - torch.from_numpy(s.sampler_logp)
        weight = (log_ratio.sum() if sequence_weights else log_ratio).exp().clamp(max=2.0)
        loss = loss + (divergence * weight).sum() / count
    loss.backward()
    return loss.item(), {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize(("correction", "temperature"), [("token", 1.0), ("token", 0.7), ("sequence", 0.7)])
def test_update_is_the_gradient_of_the_definition(random_model, correction, temperature):
    data = batch()
    cfg = settings(
        random_model,
        f"algorithm.rollout_correction.rollout_is={correction}",
        f"actor_rollout_ref.rollout.temperature={temperature}",
        f"{KEY}.self_distillation.teacher_update_rate=0",
    )
    before = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).state_dict()
    report, after, _ = run(cfg, data)
    loss, grads = reference_loss(random_model, data, sequence_weights=correction == "sequence", temperature=temperature)
    assert report.losses[0] == pytest.approx(loss, rel=1e-5)
    assert report.grad_norms[0] == pytest.approx(torch.stack([g.norm() for g in grads.values()]).norm().item(), rel=1e-4)
    for name, grad in grads.items():  # one Adam step with betas 0 and eps 1 moves by lr * g / (|g| + 1)
        assert torch.allclose(before[name] - after[name], 0.1 * grad / (grad.abs() + 1), atol=2e-6), name


def assert_same(left, right, tolerance=1e-6):
    assert left[0].losses == pytest.approx(right[0].losses, rel=1e-5, abs=1e-7)
    for name, weight in left[1].items():
        assert (weight - right[1][name]).abs().max() < tolerance, name
    for i, record in left[0].records.items():
        for field, values in record.items():
            assert np.allclose(values, right[0].records[i][field], atol=1e-4), (i, field)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_micro_batches_do_not_change_the_gradient(random_model, mode):
    mode = f"{KEY}.loss_agg_mode={mode}"
    whole = run(settings(random_model, mode), batch())
    for size in (1, 2, 4):
        assert_same(run(settings(random_model, mode, f"{KEY}.ppo_micro_batch_size_per_gpu={size}"), batch()), whole)


def test_a_token_budget_does_not_change_the_gradient(random_model):
    small = (f"{KEY}.ppo_max_token_len_per_gpu=296", f"{KEY}.self_distillation.max_reprompt_len=256")
    assert_same(run(settings(random_model, *small), batch()), run(settings(random_model), batch()))


def test_head_chunks_do_not_change_the_gradient(random_model, monkeypatch):
    sequence = "algorithm.rollout_correction.rollout_is=sequence"
    whole = run(settings(random_model, sequence), batch())
    monkeypatch.setattr(fused, "CHUNK_BYTES", 1)  # the smallest chunk
    assert_same(run(settings(random_model, sequence), batch()), whole)


def test_keeping_layers_whole_after_the_forward_pass_changes_nothing(random_model):
    kept = settings(random_model, f"{KEY}.fsdp_config.reshard_after_forward=False")
    assert_same(run(kept, batch(), steps=2), run(settings(random_model), batch(), steps=2))


def test_what_rests_in_host_memory_trains_the_same(random_model):
    """On a CPU host and device are one: the calls are those of a GPU, the bytes saved are not seen here (docs/gpu_checks.md)."""
    rests = [
        *(f"{KEY}.fsdp_config.{name}_offload=True" for name in ("param", "optimizer")),
        "actor_rollout_ref.ref.fsdp_config.param_offload=True",
    ]
    two_steps = f"{KEY}.ppo_mini_batch_size=2"
    assert_same(run(settings(random_model, two_steps, *rests), batch(), steps=2), run(settings(random_model, two_steps), batch(), steps=2))


@pytest.mark.slow
def test_compiled_layers_train_the_same(tmp_path):
    model = make_random_model(tmp_path / "one_layer", num_hidden_layers=1)  # compiling takes its time
    data = batch(contexts=False, advantages=True)
    whole, compiled = (
        run(settings(model, *more, name="baseline_grpo"), data, steps=2) for more in ((), (f"{KEY}.use_torch_compile=True",))
    )
    assert_same(compiled, whole, tolerance=1e-5)


def test_a_teacher_that_stays_is_held_in_the_compute_dtype(random_model):
    half = f"{KEY}.fsdp_config.param_dtype=bfloat16"
    for rate, held in ((0.0, torch.bfloat16), (0.05, torch.float32)):
        actor = Actor(settings(random_model, half, f"{KEY}.self_distillation.teacher_update_rate={rate}"))
        assert {p.dtype for p in actor.second.parameters()} == {held} and {p.dtype for p in actor.student.parameters()} == {torch.float32}


def test_bfloat16_computes_in_it_and_keeps_masters_in_float32(random_model):
    half, whole = (run(settings(random_model, f"{KEY}.fsdp_config.param_dtype={name}"), batch()) for name in ("bfloat16", "float32"))
    assert half[0].losses == pytest.approx(whole[0].losses, rel=0.02)
    assert half[0].losses != whole[0].losses
    assert {p.dtype for p in half[2].student.parameters()} == {torch.float32}


def test_gradient_checkpointing_does_not_change_the_gradient(random_model):
    checkpointed = settings(random_model, "actor_rollout_ref.model.enable_gradient_checkpointing=True")
    assert_same(run(checkpointed, batch()), run(settings(random_model), batch()))


def test_vanilla_matches_plain_policy_gradient(random_model):
    data = batch(contexts=False, advantages=True)
    report, _, _ = run(settings(random_model, name="baseline_grpo"), data)
    lm = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32, attn_implementation="eager")
    count = sum(len(s.response_ids) for s in data.samples)
    loss = torch.zeros(())
    for s in data.samples:
        path = torch.from_numpy(np.concatenate([s.prompt_ids, s.response_ids]).astype(np.int64))[None]
        logp = (
            lm(path)
            .logits[0, len(s.prompt_ids) - 1 : -1]
            .log_softmax(-1)
            .gather(-1, torch.from_numpy(s.response_ids).long()[:, None])[:, 0]
        )
        weight = (logp.detach() - torch.from_numpy(s.sampler_logp)).exp().clamp(max=2.0)
        loss = loss - (s.advantage * weight * logp).sum() / count
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in lm.parameters()]).norm().item()
    assert report.grad_norms[0] == pytest.approx(norm, rel=1e-4)


def test_several_mini_batches_score_the_student_before_the_first(random_model):
    data = batch(contexts=False, advantages=True)
    cfg = settings(random_model, name="baseline_grpo")
    cfg.actor_rollout_ref.actor.ppo_mini_batch_size = 2
    report, _, _ = run(cfg, data)
    assert len(report.losses) == 2 and report.seconds["old_logp"] > 0
    alone = run(settings(random_model, name="baseline_grpo"), data)[0]
    later = [i for i, s in enumerate(data.samples) if s.group >= 2]  # trained second: the student has moved
    assert any(not np.allclose(report.records[i]["student_logp"], alone.records[i]["student_logp"], atol=1e-3) for i in later)
    assert all(np.allclose(report.records[i]["importance_weight"], alone.records[i]["importance_weight"], atol=1e-4) for i in later)


def test_the_gap_to_the_sampler_is_that_before_the_step(random_model):
    """With several optimizer steps the student moves; that is not the sampler's doing."""
    data = batch()
    before = run(settings(random_model), data)[0]
    for i, sample in enumerate(data.samples):
        sample.sampler_logp[:] = before.records[i]["student_logp"]
    report = run(settings(random_model, f"{KEY}.ppo_epochs=2"), data)[0]
    assert len(report.losses) == 2
    metrics = update_metrics(data.samples, report.records, {})
    assert metrics["rollout/logp_gap_max"] < 1e-4
    assert not np.allclose(report.records[0]["student_logp"], before.records[0]["student_logp"], atol=1e-3)


def test_teacher_moves_toward_the_student_in_fp32(random_model):
    cfg = settings(random_model, f"{KEY}.self_distillation.teacher_update_rate=0.05")
    before = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).state_dict()
    _, student, actor = run(cfg, batch())
    for name, weight in actor.second.lm.named_parameters():
        whole = weight.full_tensor()
        assert whole.dtype == torch.float32
        assert torch.allclose(whole, 0.95 * before[name] + 0.05 * student[name], atol=1e-7), name


def test_frozen_and_external_teachers_stay(random_model, tmp_path):
    other = make_random_model(tmp_path / "teacher", seed=7, hidden_size=48, num_hidden_layers=1)
    frozen = settings(random_model, f"actor_rollout_ref.ref.model.path={other}", f"{KEY}.self_distillation.teacher_update_rate=0")
    before = AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32).state_dict()
    report, _, actor = run(frozen, batch(), steps=2)
    assert all(torch.equal(weight.full_tensor(), before[name]) for name, weight in actor.second.lm.named_parameters())
    assert report.losses[0] > 0


def test_a_loss_that_is_not_finite_skips_the_step(random_model):
    data = batch()
    data.samples[5].sampler_logp[0] = np.nan
    before = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).state_dict()
    report, after, actor = run(settings(random_model), data)
    assert report.skipped == 1
    assert [i for i, r in report.records.items() if not np.isfinite(r["loss"]).all()] == [5]
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert all(torch.equal(weight.full_tensor(), before[name]) for name, weight in actor.second.lm.named_parameters())
    data.samples[5].sampler_logp[0] = -1.0
    plan = make_plan(data, 4, actor.actor, world_size=1, max_response_length=40)
    assert actor.update(shares(data, plan)[0], 0.1).skipped == 0  # and the next one is not poisoned


def test_a_resumed_optimizer_has_the_settings_of_this_run(random_model, tmp_path):
    _, _, actor = run(settings(random_model), batch())
    actor.save(str(tmp_path))
    resumed = Actor(settings(random_model, f"{KEY}.optim.weight_decay=0.3", f"{KEY}.optim.betas=[0.5,0.6]"))
    resumed.load(str(tmp_path))
    for group in resumed.optimizer.param_groups:
        assert (group["weight_decay"], group["betas"], group["eps"]) == (0.3, (0.5, 0.6), 1.0)
    moments = next(iter(resumed.optimizer.state.values()))
    assert moments["step"] == 1 and moments["exp_avg"].full_tensor().abs().sum() > 0


TWO_RANKS = """
import os, sys, numpy as np, torch
from pathlib import Path
from tests.test_actor import batch, settings
from trainer.batching import make_plan
from trainer.workers.actor import Actor
from trainer.workers.base import shares
rank, world, address, model, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5])
torch.set_num_threads(1)
cfg = settings(model, *sys.argv[6:])
cfg.trainer.n_gpus_per_node = world
actor = Actor(cfg, rank=rank, world_size=world, address=address)
if out.joinpath("saved").is_dir():
    actor.load(str(out / "saved"))
data = batch()
plan = make_plan(data, 4, cfg.actor_rollout_ref.actor, world_size=world, max_response_length=40)
for _ in range(2):
    report = actor.update(shares(data, plan)[rank], 0.1)
weights = actor.weights(torch.float32)
assert bool(weights) == (rank == 0)
torch.save({"report": report, "weights": weights}, out / f"{rank}.pt")
lone = type(data)(data.samples[:1])  # one rank has nothing to train and still runs the passes of the other
plan = make_plan(lone, 4, cfg.actor_rollout_ref.actor, world_size=world, max_response_length=40)
assert len(actor.update(shares(lone, plan)[rank], 0.1).records) == (rank == 0)
os._exit(0)  # as a killed Ray worker ends: torch's threads may abort an orderly exit
"""


def spawn(world: int, model: Path, out: Path, *overrides: str):
    out.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), f"127.0.0.1:{port}", str(model), str(out), *overrides],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    results = [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(world)]
    return merge([result["report"] for result in results]), results[0]["weights"]


@pytest.mark.slow
def test_two_ranks_are_one_with_sequence_weights_and_two_steps_at_another_temperature(random_model, tmp_path):
    more = (
        "algorithm.rollout_correction.rollout_is=sequence",
        "actor_rollout_ref.rollout.temperature=0.7",
        f"{KEY}.ppo_mini_batch_size=2",
        f"{KEY}.loss_agg_mode=seq-mean-token-mean",
        f"{KEY}.entropy_coeff=0.01",
        f"{KEY}.fsdp_config.reshard_after_forward=False",
    )
    assert_same(spawn(2, random_model, tmp_path / "two", *more), run(settings(random_model, *more), batch(), steps=2)[:2], tolerance=1e-5)


@pytest.mark.slow
def test_two_ranks_are_one_and_load_each_others_checkpoints(random_model, tmp_path):
    one = run(settings(random_model), batch(), steps=2)
    two = spawn(2, random_model, tmp_path / "two")
    assert_same(two, one[:2], tolerance=5e-6)
    assert sorted(two[0].records) == list(range(16))

    # a checkpoint of one rank, gone on with on two, is one rank going on
    (tmp_path / "go_on" / "saved").mkdir(parents=True)
    one[2].save(str(tmp_path / "go_on" / "saved"))
    data = batch()
    plan = make_plan(data, 4, one[2].actor, world_size=1, max_response_length=40)
    for _ in range(2):
        report = one[2].update(shares(data, plan)[0], 0.1)
    resumed = spawn(2, random_model, tmp_path / "go_on")
    assert_same(resumed, (report, one[2].weights(torch.float32)), tolerance=1e-5)
