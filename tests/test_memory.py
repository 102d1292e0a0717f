"""The memory planner: against tensors that are counted, against resident memory that is measured, and what follows from it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from io import StringIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen3Config

from benchmarks.tools import model_config
from tests.tools import ROOT, overrides
from trainer import checks, config, dry_run, footprint, forest, memory
from trainer.attention import plan_attention
from trainer.config.schema import Config
from trainer.display import Display
from trainer.errors import UserError
from trainer.footprint import Architecture, Attended
from trainer.machine import memory_available, peak_resident, resident

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MODELS = {
    "qwen3": Qwen3Config(**SMALL, num_hidden_layers=4, tie_word_embeddings=True),
    "qwen3, one layer": Qwen3Config(**SMALL, num_hidden_layers=1, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL, num_hidden_layers=3, tie_word_embeddings=False),
}
ACTOR, FSDP = "actor_rollout_ref.actor", "actor_rollout_ref.actor.fsdp_config"
BUDGET, CHECKPOINTING = f"{ACTOR}.ppo_max_token_len_per_gpu", "actor_rollout_ref.model.enable_gradient_checkpointing"
QWEN3_4B = model_config("qwen3-4b")
GPU = ("trainer.device=cuda", f"{FSDP}.param_dtype=bfloat16", "actor_rollout_ref.rollout.name=vllm")
FREE = 79 * memory.GIB


@cache
def base_config() -> Config:
    return config.load("sdpo", [*GPU])


def changed(cfg: Config, key: str, value) -> Config:
    """The configuration with a key set."""
    name, _, rest = key.partition(".")
    return replace(cfg, **{name: changed(getattr(cfg, name), rest, value) if rest else value})


def planned(*more: str, own=QWEN3_4B, device="cuda", name="sdpo", **given) -> memory.MemoryPlan:
    """The plan of Qwen3-4B on GPUs unless said otherwise."""
    return memory.plan(config.load(name, [*(GPU if device == "cuda" else ()), *more]), device=device, own=own, **given)


def parts(plan: memory.MemoryPlan, phase: str) -> dict[str, int]:
    return dict(next(found.parts for found in plan.phases if found.name == phase))


# what a pass holds


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_model(name):
    lm = AutoModelForCausalLM.from_config(MODELS[name])
    sizes = footprint.sizes(Architecture(MODELS[name]))
    assert sizes.parameters == lm.num_parameters()
    assert sizes.layer == sum(p.numel() for p in lm.model.layers[0].parameters())
    assert sizes.root + len(lm.model.layers) * sizes.layer == sizes.parameters and (sizes.words, sizes.width) == (64, 32)


def test_the_published_size_is_exact():
    assert footprint.sizes(Architecture(QWEN3_4B)).parameters == 4_022_468_096  # as published: 4.0B


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_without_data_holds_what_a_pass_with_data_does(name, grad, checkpointing):
    lm = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="forest").requires_grad_(grad).train(grad)
    if checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": False})
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, 40) for _ in range(2)]
    packed = forest.build([(prompt, rng.integers(0, 64, 30)) for prompt in prompts for _ in range(3)])
    blocks = plan_attention(packed, "cpu").of("segmentwise").blocks
    mask = sum(4 * block.mask.numel() for block in blocks if block.mask is not None)
    noise = 8 * (3 * len(packed.token_ids) + sum(block.queries.numel() + block.keys.numel() for block in blocks))  # indices
    attended = Attended(len(packed.token_ids), sum(block.queries.numel() for block in blocks), sum(block.keys.numel() for block in blocks))
    simulated = footprint.of_pass(Architecture(MODELS[name]), torch.float32, attended, grad=grad, checkpointing=checkpointing and grad)

    live = footprint.Live([*lm.parameters(), *lm.buffers()])
    for parameter in lm.parameters():
        if grad:
            parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with live, torch.set_grad_enabled(grad):
        plan = plan_attention(packed, "cpu")
        hidden = lm.base_model(
            input_ids=torch.from_numpy(packed.token_ids)[None],
            position_ids=torch.from_numpy(packed.positions)[None],
            use_cache=False,
            plan=plan,
        ).last_hidden_state
        saved, forward = live.bytes, live.peak
        live.peak = saved
        if grad:
            torch.autograd.backward(hidden, torch.empty_like(hidden))
    assert simulated.saved + mask == pytest.approx(saved, abs=noise)
    assert simulated.forward == pytest.approx(forward - saved, abs=noise)
    assert simulated.backward == pytest.approx(live.peak - saved, abs=noise)


def test_attention_on_a_cpu_copies_what_the_planner_says():
    cfg = config.load(
        "sdpo", ["data.max_prompt_length=40", "data.max_response_length=31", f"{ACTOR}.ppo_mini_batch_size=2", "data.train_batch_size=2"]
    )
    planner = memory.Planner(cfg, device="cpu", own=MODELS["qwen3"])
    (student, mask), _ = planner._sides(cfg)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 64, 40) for _ in range(2)]
    packed = forest.build([(prompt, rng.integers(0, 64, 31)) for prompt in prompts for _ in range(8)])
    blocks = plan_attention(packed, "cpu").of("segmentwise").blocks
    assert student.tokens == student.queries == len(packed.token_ids) == sum(block.queries.numel() for block in blocks)
    assert student.keys == sum(block.keys.numel() for block in blocks)
    assert mask == sum(4 * block.mask.numel() for block in blocks if block.mask is not None)


# the parts


def test_parts_of_a_published_size_by_hand():
    plan = planned(f"{CHECKPOINTING}=True", free=FREE)
    count, root = 4_022_468_096, 151_936 * 2560
    head, optimizer, rollout = (parts(plan, phase) for phase in ("head", "optimizer", "rollout"))
    assert head["master weights"] == head["gradients"] == head["teacher"] == 4 * count and head["Adam moments"] == 8 * count
    assert head["head gradient"] == 4 * root + 2 * root  # in float32, and a chunk's part of it in bfloat16
    assert head["logits"] == plan.chunk * 151_936 * (4 + 4 + 2 + 8) and plan.chunk & (plan.chunk - 1) == 0
    assert 2 * head["logits"] > memory.CHUNK_SHARE * FREE >= head["logits"]
    assert head["whole weights"] == pytest.approx(2 * 2 * root, rel=1e-4)  # student's and teacher's, the last norms beside
    assert optimizer["gradients"] == 4 * count and "activations" not in optimizer
    assert rollout["engine"] == FREE // 2 and "gradients" not in rollout
    assert plan.expected == max(p.total - p.parts["process"] - p.parts["engine"] for p in plan.phases)


def test_ranks_share_what_is_sharded():
    one, four = planned(), planned("trainer.n_gpus_per_node=4")
    for part in ("master weights", "Adam moments", "teacher", "gradients"):
        assert parts(four, "head")[part] == parts(one, "head")[part] // 4
    assert parts(four, "head")["whole weights"] == parts(one, "head")["whole weights"]
    assert parts(four, "head")["process"] > parts(one, "head")["process"]  # nccl


def test_a_teacher_that_stays_as_it_is_takes_half():
    moving, fixed = planned(), planned(f"{ACTOR}.self_distillation.teacher_update_rate=0")
    assert parts(fixed, "head")["teacher"] == parts(moving, "head")["teacher"] // 2
    assert "teacher" not in [phase.name for phase in planned(name="baseline_grpo").phases]
    reference = planned(f"{ACTOR}.use_kl_loss=True", name="baseline_grpo")
    assert parts(reference, "head")["reference"] == parts(fixed, "head")["teacher"]


def test_offloading_moves_parts_to_where_they_are_used():
    base = planned()
    weights = planned(f"{FSDP}.param_offload=True", "actor_rollout_ref.ref.fsdp_config.param_offload=True")
    moments = planned(f"{FSDP}.optimizer_offload=True")
    assert {"master weights", "teacher"} <= parts(base, "rollout").keys() and not {"master weights", "teacher"} & parts(
        weights, "rollout"
    ).keys()
    assert parts(weights, "head") == parts(base, "head")
    assert all("Adam moments" not in phase.parts for phase in moments.phases if phase.name != "optimizer")
    assert parts(moments, "optimizer") == parts(base, "optimizer")
    on_cpu = planned(f"{FSDP}.optimizer_offload=True", own=MODELS["qwen3"], device="cpu")
    assert on_cpu == planned(own=MODELS["qwen3"], device="cpu")  # it is the same memory


@settings(max_examples=3)
@given(st.integers(14_336, 60_000), st.sampled_from([1, 2, 8]), st.booleans())
def test_more_tokens_need_more_and_checkpointing_less(tokens, ranks, resharded):
    cfg = base_config()
    for key, value in (("trainer.n_gpus_per_node", ranks), (f"{FSDP}.reshard_after_forward", resharded), (f"{ACTOR}.head_chunk", 512)):
        cfg = changed(cfg, key, value)
    planner = memory.Planner(cfg, device="cuda", own=QWEN3_4B)
    cfg = changed(cfg, BUDGET, tokens)
    plan, more, less = (planner.plan(each) for each in (cfg, changed(cfg, BUDGET, 2 * tokens), changed(cfg, CHECKPOINTING, True)))
    assert plan.worst.total < more.worst.total
    assert all(a.total <= b.total for a, b in zip(plan.phases, more.phases, strict=True))
    assert all(a.total <= b.total for a, b in zip(less.phases, plan.phases, strict=True)) and less.worst.total < plan.worst.total
    assert all(size > 0 for phase in plan.phases for size in phase.parts.values())


# auto


@pytest.mark.parametrize("gib", [60, 120, 4000])
def test_the_budget_found_is_the_largest_that_fits(gib):
    free = gib * memory.GIB
    cfg = config.load("sdpo", [*GPU, f"{BUDGET}=auto", f"{CHECKPOINTING}=True", "actor_rollout_ref.rollout.n_gpus=1"])
    planner = memory.Planner(cfg, device="cuda", own=QWEN3_4B, free=free)
    found, plan = planner.resolve(cfg)
    budget = found.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    most = max(planner._most_tokens(cfg))
    assert cfg.longest_sequence <= budget == plan.tokens <= most
    assert plan.worst.total <= memory.AUTO_SHARE * free or budget == cfg.longest_sequence
    assert (budget == cfg.longest_sequence, budget == most) == (gib == 60, gib == 4000)
    if budget < most:
        larger = planner.plan(changed(found, BUDGET, round(1.15 * budget) + memory.STEP))
        assert larger.worst.total > memory.AUTO_SHARE * free


def test_a_small_mini_batch_caps_budget_and_chunk():
    sizes = ("data.max_prompt_length=32", "data.max_response_length=48", f"{ACTOR}.self_distillation.max_reprompt_len=256")
    small = (*sizes, "data.train_batch_size=4", f"{ACTOR}.ppo_mini_batch_size=4", f"{BUDGET}=auto")
    plan = planned(*small, own=MODELS["qwen3"], device="cpu", free=8 * memory.GIB)
    assert plan.tokens == 4 * 2 * 256 + 32 * 47  # two contexts a group: one for most, one for the success that is shown
    assert plan.chunk == 32 * 48
    assert planned(*small, own=MODELS["qwen3"], device="cpu", prompt=20, context=100).tokens == max(4 * 2 * 100, 4 * 20) + 32 * 47


def test_the_chunk_follows_from_the_vocabulary_on_a_cpu():
    assert planned(device="cpu").chunk == (1 << 28) // (2 * 4 * 151_936) == 220
    assert planned(f"{ACTOR}.head_chunk=64").chunk == 64


def test_auto_or_a_number():
    cfg = config.load("sdpo", [f"{BUDGET}=auto", f"{ACTOR}.head_chunk=100"])
    assert (cfg.actor_rollout_ref.actor.ppo_max_token_len_per_gpu, cfg.actor_rollout_ref.actor.head_chunk) == ("auto", 100)
    for key in (BUDGET, f"{ACTOR}.head_chunk"):
        with pytest.raises(UserError, match=re.escape(f"{key}='many': must be a whole number, or auto")):
            config.load("sdpo", [f"{key}=many"])
        with pytest.raises(UserError, match=re.escape(f"{key}=0: must be at least 1")):
            config.load("sdpo", [f"{key}=0"])
    with pytest.raises(UserError, match=r"head_chunk.*1\.5"):
        config.load("sdpo", [f"{ACTOR}.head_chunk=1.5"])


# the check


def checked(free: int, *more: str) -> list[str]:
    cfg = config.load("sdpo", [*GPU, f"{CHECKPOINTING}=True", "actor_rollout_ref.rollout.n_gpus=1", *more])
    planner = memory.Planner(cfg, device="cuda", own=QWEN3_4B, free=free)
    return planner.check(*planner.resolve(cfg))


def test_too_much_is_refused_with_parts_and_remedies():
    need = planned(f"{CHECKPOINTING}=True", "actor_rollout_ref.rollout.n_gpus=1", f"{ACTOR}.head_chunk=512").worst.total
    chunk = f"{ACTOR}.head_chunk=512"
    assert checked(round(1.2 * need), chunk) == []
    (notice,) = checked(round(1.05 * need), chunk)
    assert "optimizer_offload=True" in notice
    with pytest.raises(UserError) as refused:
        checked(round(0.9 * need), chunk)
    text = str(refused.value)
    assert f"{memory.gib(need - round(0.9 * need))} GiB too few" in text
    assert re.search(r"Adam moments +29\.97 +29\.97", text) and "trainer.check_memory=False" in text
    promised = {key: float(peak) for peak, key in re.findall(r"^  ([\d.]+) GiB with (\S+)$", text, re.MULTILINE)}
    assert {f"{FSDP}.optimizer_offload=True", f"{BUDGET}=14336", "trainer.n_gpus_per_node=2"} <= promised.keys()
    assert f"{CHECKPOINTING}=True" not in promised  # it is on
    for key in (f"{BUDGET}=14336", "trainer.n_gpus_per_node=2"):
        found = planned(f"{CHECKPOINTING}=True", "actor_rollout_ref.rollout.n_gpus=1", chunk, key).worst.total
        assert found / memory.GIB == pytest.approx(promised[key], abs=0.01) and found < need
    assert "too few" in checked(round(0.9 * need), chunk, "trainer.check_memory=False")[0]


def test_engine_and_ranks_share_a_cpu(random_model):
    own = AutoConfig.from_pretrained(random_model)
    plan = planned(own=own, device="cpu", free=10 * memory.GIB, process=memory.GIB)
    assert plan.there == 10 * memory.GIB - memory.GIB - 4 * footprint.sizes(Architecture(own)).parameters
    two = planned("trainer.n_gpus_per_node=2", own=own, device="cpu", free=10 * memory.GIB, process=memory.GIB)
    assert two.there == plan.there // 2
    cfg = config.load("sdpo", ["trainer.device=cpu", "data.max_response_length=20000", f"{BUDGET}=auto"])
    planner = memory.Planner(cfg, device="cpu", own=own, free=6 * memory.GIB, process=memory.GIB)
    (notice,) = planner.check(*planner.resolve(cfg))
    assert re.search(r"an engine comes to .* lower actor_rollout_ref\.rollout\.max_num_seqs=256", notice)


def test_before_a_run_auto_is_filled_in_and_said(random_model, chains_data, tmp_path):
    more = ("trainer.dry_run=True", f"{BUDGET}=auto")
    prepared = checks.prepare(config.load("sdpo", overrides(random_model, chains_data, tmp_path, *more)))
    actor, plan = prepared.config.actor_rollout_ref.actor, prepared.memory
    assert actor.ppo_max_token_len_per_gpu == plan.tokens >= 256 + 40 and actor.head_chunk == plan.chunk
    assert plan.worst.total < plan.there
    display = Display()
    display.console = Console(file=StringIO(), width=80)
    dry_run.report(prepared, display)
    said = " ".join(display.console.file.getvalue().split())
    assert f"up to {plan.tokens} tokens" in said and "memory per rank, predicted" in said
    assert f"in all {memory.gib(plan.phases[0].total)}" in said and f"{memory.gib(plan.there)} GiB are there" in said


def test_too_little_memory_stops_a_run_before_a_model_loads(random_model, chains_data, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_available", lambda: 1 << 28)
    with pytest.raises(UserError, match="a rank is predicted to need"):
        checks.prepare(config.load("sdpo", overrides(random_model, chains_data, tmp_path)))


# what there is


def test_memory_left_under_a_limit(tmp_path):
    def file(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    file("proc/meminfo", "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n")
    file("proc/self/cgroup", "0::/outer/inner\n")
    assert memory_available(tmp_path) == 1000 * 1024
    group = "sys/fs/cgroup/outer"
    file(f"{group}/inner/memory.max", "max\n")
    file(f"{group}/memory.max", "700000\n")
    file(f"{group}/memory.current", "500000\n")
    file(f"{group}/memory.stat", "anon 1\ninactive_file 50000\n")
    assert memory_available(tmp_path) == 250_000
    file("proc/self/cgroup", "5:cpu:/\n4:memory:/box\n")
    group = "sys/fs/cgroup/memory/box"
    file(f"{group}/memory.limit_in_bytes", "300000\n")
    file(f"{group}/memory.usage_in_bytes", "290000\n")
    file(f"{group}/memory.stat", "total_inactive_file 0\n")
    assert memory_available(tmp_path) == 10_000
    assert memory_available() > 0 and 0 < resident() <= peak_resident()


@pytest.mark.slow
def test_a_rank_takes_what_was_predicted(tmp_path):
    """In a process of its own, since what this one has freed counts as well."""
    size = ("--size", "3.2m", "--words", "30000", "--prompt", "32", "--response", "48", "--context", "128")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", *size, "--out", str(tmp_path / "out.json")], cwd=ROOT, check=True, capture_output=True
    )
    stages = json.loads((tmp_path / "out.json").read_text())["stages"]
    assert b"predicted" in done.stdout and stages.keys() == {"start", "update"}
    assert stages["update"]["predicted"] == pytest.approx(stages["update"]["measured"], rel=0.2)
    assert stages["update"]["predicted_growth"] == pytest.approx(stages["update"]["growth"], rel=0.2)
