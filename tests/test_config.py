"""The configuration: defaults, nesting, and that nonsense is refused with what to change, before torch is imported."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from tests.tools import ROOT
from trainer import config
from trainer.errors import UserError

DISTILL = "actor_rollout_ref.actor.self_distillation"


def test_published_defaults():
    cfg = config.load("sdpo")
    distill, actor = cfg.actor_rollout_ref.actor.self_distillation, cfg.actor_rollout_ref.actor
    assert (distill.include_primary_solution, distill.include_another_solution, distill.include_failure_solution) == (True, False, False)
    assert distill.failure_solution_condition == "when_no_solution"
    assert (distill.alpha, distill.distillation_topk, distill.distillation_add_tail, distill.is_clip) == (0.5, 100, True, 2.0)
    assert (distill.teacher_update_rate, distill.max_reprompt_len, distill.success_reward_threshold) == (0.05, 10240, 1.0)
    assert (actor.policy_loss.loss_mode, actor.optim.lr, actor.ppo_mini_batch_size, actor.clip_ratio_high) == ("sdpo", 1e-5, 32, 0.28)
    assert (cfg.actor_rollout_ref.rollout.n, cfg.actor_rollout_ref.rollout.temperature) == (8, 1.0)
    val = cfg.actor_rollout_ref.rollout.val_kwargs
    assert (val.temperature, val.top_p) == (0.6, 0.95)
    assert cfg.algorithm.rollout_correction.rollout_is == "token" and cfg.algorithm.rollout_correction.rollout_is_threshold == 2.0
    assert cfg.data.apply_chat_template_kwargs == {"enable_thinking": False}
    assert config.load("baseline_grpo").actor_rollout_ref.actor.policy_loss.loss_mode == "vanilla"


def test_the_resolved_configuration_reads_back():
    cfg = config.load("sdpo", ["data.seed=7"])
    assert config.typed(OmegaConf.create(config.to_yaml(cfg))) == cfg
    flat = config.flat(cfg)
    assert flat["data.seed"] == 7 and flat["trainer.log_dir"] == "logs/sdpo" and flat["actor_rollout_ref.actor.optim.betas"] == [0.9, 0.999]


def test_lists_and_template_arguments():
    cfg = config.load("sdpo", ["data.train_files=[a.parquet,b.parquet]", "data.apply_chat_template_kwargs.reasoning_effort=low"])
    assert cfg.data.train_files == ["a.parquet", "b.parquet"]
    assert cfg.data.apply_chat_template_kwargs == {"enable_thinking": False, "reasoning_effort": "low"}


def test_recorded_settings_stand_between_defaults_and_overrides():
    recorded = config.flat(config.load("sdpo", ["data.seed=7", "data.train_files=[a,b]", "data.apply_chat_template_kwargs.level=2"]))
    nested = OmegaConf.to_container(OmegaConf.create(config.to_yaml(config.load("sdpo", ["data.seed=7"]))))
    more = ["trainer.save_freq=3", "data.apply_chat_template_kwargs.enable_thinking=True"]
    now = config.typed(config.compose_recorded(recorded | {"data.gone": 1}, "sdpo", more))
    assert (now.data.seed, now.data.train_files, now.trainer.save_freq) == (7, ["a", "b"], 3)
    assert now.data.apply_chat_template_kwargs == {"enable_thinking": True, "level": 2}
    assert config.typed(config.compose_recorded(nested, "sdpo", ["data.seed=8"])).data.seed == 8
    assert config.typed(config.compose_recorded(nested, "baseline_grpo", [])).actor_rollout_ref.actor.policy_loss.loss_mode == "sdpo"


REFUSED = [
    (["actor_rollout_ref.actor.optim.learning_rate=1"], "unknown key.*optim.learning_rate"),
    (["data.train_batchsize=4"], "did you mean 'data.train_batch_size'"),
    (["alpha=0.3"], f"did you mean '{DISTILL}.alpha'"),
    (["actor_rollout_ref.rollout.swap_space=1"], "Known in actor_rollout_ref.rollout: name, n, temperature"),
    (["actor_rollout_ref.rollout.gpu_memory_utilization=1.1"], "gpu_memory_utilization=1.1: must be greater than 0 and at most 1"),
    (["actor_rollout_ref.rollout.n_gpus=3", "actor_rollout_ref.rollout.tensor_model_parallel_size=2"], "n_gpus=3 is no multiple of"),
    (["trainer.rollout_overlap=1"], "the engines need GPUs of their own: set actor_rollout_ref.rollout.n_gpus"),
    (["trainer.rollout_overlap=2"], "trainer.rollout_overlap=2: must be one of 0, 1"),
    (["+trainer.new_key=1"], "unknown key 'trainer.new_key'"),
    ([f"{DISTILL}.reprompt_truncation=left"], "reprompt_truncation is not a key here: .*the frame never is"),
    ([f"{DISTILL}.step_level_kl=True"], "changes nothing"),
    (["data.seed=many"], "data.seed.*many"),
    (["data.train_files=/x"], r"data\.train_files=/x: must be a list: data\.train_files=\[/x\]"),
    (["data.train_batch_size"], "key=value"),
    (["data.train_batch_size=30"], "30 prompts do not divide.*ppo_mini_batch_size=32"),
    ([f"{DISTILL}.success_reward_threshold=nan"], "success_reward_threshold=nan: must be a finite number"),
    (["actor_rollout_ref.actor.entropy_coeff=inf"], "entropy_coeff=inf: must be a finite number"),
    (["actor_rollout_ref.actor.kl_loss_coef=-1"], "kl_loss_coef=-1.0: must be at least 0"),
    (
        ["actor_rollout_ref.ref.model.path=m", "actor_rollout_ref.actor.policy_loss.loss_mode=vanilla"],
        "path='m' would not be used: .*use_kl_loss=True",
    ),
    ([f"{DISTILL}.alpha=1.5"], "alpha=1.5: must be at least 0 and at most 1"),
    ([f"{DISTILL}.full_logit_distillation=False"], "needs .*alpha=1.0, not 0.5"),
    ([f"{DISTILL}.solution_template='no slot'"], "solution_template='no slot'.*{successful_previous_attempt} is missing"),
    ([f"{DISTILL}.reprompt_template='{{solution}}{{feedback}}'"], "{prompt} is missing"),
    ([f"{DISTILL}.reprompt_template='{{prompt}}{{solution}}'"], "has no {feedback}"),
    (
        [f"{DISTILL}.reprompt_template='{{prompt}}{{solution}}{{feedback}}{{solution_summaries}}'"],
        "unknown placeholder {solution_summaries}",
    ),
    ([f"{DISTILL}.failure_solution_condition=sometimes"], "must be one of 'always', 'when_no_solution'"),
    ([f"{DISTILL}.is_clip=0"], "is_clip=0.0: must be greater than 0"),
    ([f"{DISTILL}.max_reprompt_len=1000"], "max_reprompt_len=1000 cannot hold a prompt of data.max_prompt_length=2048"),
    (["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=9000"], "longest sequence of 14336"),
    (["actor_rollout_ref.rollout.n=1"], "no peers"),
    (["actor_rollout_ref.rollout.name=sglang"], "this engine is not there yet; vllm is"),
    (["actor_rollout_ref.rollout.temperature=0"], "temperature=0.0: must be greater than 0"),
    (["actor_rollout_ref.rollout.val_kwargs.do_sample=False"], "greedy samples would be the same"),
    (["actor_rollout_ref.actor.policy_loss.loss_mode=spo"], "known are sdpo, vanilla"),
    (["actor_rollout_ref.actor.loss_agg_mode=mean"], "token-mean"),
    (["actor_rollout_ref.actor.use_kl_loss=True"], "use_kl_loss=True with loss_mode=sdpo"),
    (["actor_rollout_ref.ref.model.path=teacher"], "set .*teacher_update_rate=0"),
    (["trainer.logger=[mlflow]"], "mlflow.*'console', 'wandb', 'tensorboard'"),
    (["trainer.resume_mode=resume_path"], "set both or neither"),
    (["algorithm.rollout_correction.rollout_is=row"], "must be one of 'token', 'sequence', None"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[overrides[0][:60] for overrides, _ in REFUSED])
def test_refused_with_what_to_change(overrides, message):
    with pytest.raises(UserError, match=message):
        config.load("sdpo", overrides)


def test_unknown_configuration_lists_the_known():
    with pytest.raises(UserError, match="Known: baseline_grpo, sdpo"):
        config.load("spdo")


def test_checking_a_configuration_imports_no_torch():
    code = "import sys; from trainer import config; config.load('sdpo'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_method_core_imports_no_ray_or_distributed():
    forbidden = ("import ray", "from ray", "import vllm", "from vllm", "import torch.distributed", "from torch.distributed")
    for file in (ROOT / "trainer").rglob("*.py"):
        if file.parent.name in ("workers", "engines"):
            continue
        lines = [line.strip() for line in file.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(forbidden)], file
