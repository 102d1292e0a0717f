"""The configuration as typed dataclasses: what each key is, in which unit, and which values are refused.

Values live in the YAML files beside this one; here are types and checks. A check says what to change.
Key names and nesting are those of the published configuration (behaviour 7).
"""

import math
import string
from dataclasses import dataclass
from typing import Any

from trainer import engines, objectives
from trainer.errors import UserError
from trainer.objectives.aggregate import LOSS_AGG_MODES
from trainer.objectives.kl import KL_TYPES


def _finite(key: str, value: float) -> None:
    if not math.isfinite(value):
        raise UserError(f"{key}={value!r}: must be a finite number.")


def _one_of(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r}: must be one of {', '.join(map(repr, allowed))}.")


def _between(key: str, value: float | None, low: float, high: float = float("inf"), *, open_low: bool = False) -> None:
    if value is None:
        return
    if not (low < value if open_low else low <= value) or not value <= high:
        bounds = f"{'greater than' if open_low else 'at least'} {low:g}" + (f" and at most {high:g}" if high < float("inf") else "")
        raise UserError(f"{key}={value!r}: must be {bounds}.")


def _count_or_auto(key: str, value: int | str) -> None:
    if isinstance(value, str) and value != "auto":
        raise UserError(f"{key}={value!r}: must be a whole number, or auto.")
    if value != "auto":
        _between(key, value, 1)


@dataclass
class Data:
    train_files: list[str]
    val_files: list[str]
    train_batch_size: int
    max_prompt_length: int
    max_response_length: int
    filter_overlong_prompts: bool
    shuffle: bool
    seed: int
    apply_chat_template_kwargs: dict[str, Any]

    def __post_init__(self) -> None:
        for key in ("train_batch_size", "max_prompt_length", "max_response_length"):
            _between(f"data.{key}", getattr(self, key), 1)


@dataclass
class Model:
    path: str
    trust_remote_code: bool
    enable_gradient_checkpointing: bool


@dataclass
class PolicyLoss:
    loss_mode: str

    def __post_init__(self) -> None:
        objectives.check(self.loss_mode)


@dataclass
class Optim:
    lr: float
    lr_warmup_steps: int
    lr_scheduler_type: str
    min_lr_ratio: float
    betas: list[float]
    eps: float
    weight_decay: float

    def __post_init__(self) -> None:
        prefix = "actor_rollout_ref.actor.optim"
        _between(f"{prefix}.lr", self.lr, 0)
        _between(f"{prefix}.lr_warmup_steps", self.lr_warmup_steps, 0)
        _between(f"{prefix}.min_lr_ratio", self.min_lr_ratio, 0, 1)
        _one_of(f"{prefix}.lr_scheduler_type", self.lr_scheduler_type, ("constant", "linear", "cosine"))
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"{prefix}.betas={self.betas}: must be two numbers in [0, 1).")


@dataclass
class FSDP:
    param_dtype: str
    reshard_after_forward: bool
    param_offload: bool
    optimizer_offload: bool

    def __post_init__(self) -> None:
        _one_of("actor_rollout_ref.actor.fsdp_config.param_dtype", self.param_dtype, ("auto", "float32", "bfloat16"))


# The placeholders each template must hold; the frame's section placeholders are optional, its {prompt} is not.
PLACEHOLDERS = {
    "solution_template": "successful_previous_attempt",
    "another_solution_template": "another_successful_attempt",
    "failure_solution_template": "failed_attempt",
    "feedback_template": "feedback_raw",
}
SECTIONS = ("prompt", "solution", "another_solution", "failure", "feedback")


@dataclass
class SelfDistillation:
    """Who is shown to the teacher, how it reads, and the divergence (behaviour 4, 5, 7.1)."""

    alpha: float
    full_logit_distillation: bool
    distillation_topk: int | None
    distillation_add_tail: bool
    is_clip: float | None
    teacher_regularization: str
    teacher_update_rate: float
    max_reprompt_len: int
    success_reward_threshold: float
    include_primary_solution: bool
    include_another_solution: bool
    include_failure_solution: bool
    failure_solution_condition: str
    num_success_peers: int | None
    num_failure_peers: int | None
    peer_order: str
    failure_order: str
    allow_truncated_peers: bool
    dont_reprompt_on_self_success: bool
    remove_thinking_from_demonstration: bool
    include_environment_feedback: bool
    environment_feedback_only_without_solution: bool
    reprompt_template: str
    solution_template: str
    another_solution_template: str
    failure_solution_template: str
    feedback_template: str

    def __post_init__(self) -> None:
        prefix = "actor_rollout_ref.actor.self_distillation"
        _between(f"{prefix}.alpha", self.alpha, 0, 1)
        _between(f"{prefix}.teacher_update_rate", self.teacher_update_rate, 0, 1)
        _between(f"{prefix}.is_clip", self.is_clip, 0, open_low=True)
        _finite(f"{prefix}.success_reward_threshold", self.success_reward_threshold)
        for key in ("distillation_topk", "max_reprompt_len"):
            _between(f"{prefix}.{key}", getattr(self, key), 1)
        for key in ("num_success_peers", "num_failure_peers"):
            _between(f"{prefix}.{key}", getattr(self, key), 0)
        _one_of(f"{prefix}.teacher_regularization", self.teacher_regularization, ("ema",))
        _one_of(f"{prefix}.failure_solution_condition", self.failure_solution_condition, ("always", "when_no_solution"))
        _one_of(f"{prefix}.peer_order", self.peer_order, ("random", "first"))
        _one_of(f"{prefix}.failure_order", self.failure_order, ("shared", "per_member"))
        if not self.full_logit_distillation and self.alpha != 1.0:
            raise UserError(
                f"{prefix}.full_logit_distillation=False is a surrogate of KL(student || teacher) and needs "
                f"{prefix}.alpha=1.0, not {self.alpha}."
            )
        for key, name in PLACEHOLDERS.items():
            _check_template(f"{prefix}.{key}", getattr(self, key), required=(name,), allowed=(name,))
        _check_template(f"{prefix}.reprompt_template", self.reprompt_template, required=("prompt",), allowed=SECTIONS)
        for section, shown in (
            ("solution", self.include_primary_solution),
            ("another_solution", self.include_another_solution or (self.num_success_peers or 0) > 1),
            ("failure", self.include_failure_solution or (self.num_failure_peers or 0) > 0),
            ("feedback", self.include_environment_feedback),
        ):
            if shown and f"{{{section}}}" not in self.reprompt_template:
                raise UserError(f"{prefix}.reprompt_template has no {{{section}}}, so what is included there would be dropped: add it.")


def _check_template(key: str, template: str, *, required: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{key}={template!r}: {error}. Double the braces that are meant literally.") from None
    for name in required:
        if name not in names:
            raise UserError(f"{key}={template!r}: its placeholder {{{name}}} is missing.")
    for name in sorted(names - set(allowed)):
        raise UserError(
            f"{key}={template!r}: unknown placeholder {{{name}}}. Known: {', '.join(f'{{{n}}}' for n in allowed)}; "
            "double the braces that are meant literally."
        )


@dataclass
class ActorConfig:
    ppo_mini_batch_size: int
    ppo_epochs: int
    ppo_max_token_len_per_gpu: int | str
    ppo_micro_batch_size_per_gpu: int | None
    head_chunk: int | str
    grad_clip: float
    loss_agg_mode: str
    clip_ratio_low: float
    clip_ratio_high: float
    clip_ratio_c: float
    entropy_coeff: float
    use_kl_loss: bool
    kl_loss_coef: float
    kl_loss_type: str
    policy_loss: PolicyLoss
    optim: Optim
    fsdp_config: FSDP
    use_torch_compile: bool
    self_distillation: SelfDistillation

    def __post_init__(self) -> None:
        prefix = "actor_rollout_ref.actor"
        for key in ("ppo_mini_batch_size", "ppo_epochs", "ppo_micro_batch_size_per_gpu"):
            _between(f"{prefix}.{key}", getattr(self, key), 1)
        for key in ("ppo_max_token_len_per_gpu", "head_chunk"):
            _count_or_auto(f"{prefix}.{key}", getattr(self, key))
        _between(f"{prefix}.grad_clip", self.grad_clip, 0, open_low=True)
        _between(f"{prefix}.clip_ratio_low", self.clip_ratio_low, 0, 1)
        _between(f"{prefix}.clip_ratio_high", self.clip_ratio_high, 0)
        _between(f"{prefix}.clip_ratio_c", self.clip_ratio_c, 1, open_low=True)
        _finite(f"{prefix}.entropy_coeff", self.entropy_coeff)
        _between(f"{prefix}.kl_loss_coef", self.kl_loss_coef, 0)
        _one_of(f"{prefix}.loss_agg_mode", self.loss_agg_mode, tuple(LOSS_AGG_MODES))
        _one_of(f"{prefix}.kl_loss_type", self.kl_loss_type, tuple(KL_TYPES))


@dataclass
class SamplingConfig:
    """How the engine samples: see `trainer.engines.base.Sampling` for what it is given."""

    n: int
    do_sample: bool
    temperature: float
    top_p: float
    top_k: int


@dataclass
class Rollout:
    name: str
    n: int
    temperature: float
    top_p: float
    top_k: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int | None
    tensor_model_parallel_size: int
    gpu_memory_utilization: float
    enforce_eager: bool
    n_gpus: int
    engine_timeout: float
    max_logp_gap: float | None
    val_kwargs: SamplingConfig

    def __post_init__(self) -> None:
        prefix = "actor_rollout_ref.rollout"
        engines.check(self.name)
        _between(f"{prefix}.n", self.n, 1)
        _between(f"{prefix}.max_num_seqs", self.max_num_seqs, 1)
        _between(f"{prefix}.max_num_batched_tokens", self.max_num_batched_tokens, 1)
        _between(f"{prefix}.max_model_len", self.max_model_len, 2)
        _between(f"{prefix}.tensor_model_parallel_size", self.tensor_model_parallel_size, 1)
        _between(f"{prefix}.gpu_memory_utilization", self.gpu_memory_utilization, 0, 1, open_low=True)
        _between(f"{prefix}.n_gpus", self.n_gpus, 0)
        _between(f"{prefix}.engine_timeout", self.engine_timeout, 0, open_low=True)
        _between(f"{prefix}.max_logp_gap", self.max_logp_gap, 0, open_low=True)
        if self.n_gpus % self.tensor_model_parallel_size:
            raise UserError(
                f"{prefix}.n_gpus={self.n_gpus} is no multiple of {prefix}.tensor_model_parallel_size={self.tensor_model_parallel_size}."
            )
        _between(f"{prefix}.temperature", self.temperature, 0, open_low=True)
        _between(f"{prefix}.val_kwargs.n", self.val_kwargs.n, 1)
        if self.name == "vllm":  # which would take a lower one for it, in silence
            for where, value in ((prefix, self.temperature), (f"{prefix}.val_kwargs", self.val_kwargs.temperature)):
                _between(f"{where}.temperature", value, 0.01)
        if self.val_kwargs.do_sample:
            _between(f"{prefix}.val_kwargs.temperature", self.val_kwargs.temperature, 0, open_low=True)
        elif self.val_kwargs.n > 1:
            raise UserError(f"{prefix}.val_kwargs.n={self.val_kwargs.n} greedy samples would be the same: set n=1 or do_sample=True.")
        for where, sampling in ((prefix, self), (f"{prefix}.val_kwargs", self.val_kwargs)):
            _between(f"{where}.top_p", sampling.top_p, 0, 1, open_low=True)
            if sampling.top_k != -1:
                _between(f"{where}.top_k", sampling.top_k, 1)


@dataclass
class RefModel:
    path: str | None


@dataclass
class RefFSDP:
    param_offload: bool


@dataclass
class Ref:
    model: RefModel
    fsdp_config: RefFSDP


@dataclass
class ActorRolloutRef:
    model: Model
    actor: ActorConfig
    rollout: Rollout
    ref: Ref


@dataclass
class RolloutCorrection:
    rollout_is: str | None
    rollout_is_threshold: float

    def __post_init__(self) -> None:
        _one_of("algorithm.rollout_correction.rollout_is", self.rollout_is, ("token", "sequence", None))
        _between("algorithm.rollout_correction.rollout_is_threshold", self.rollout_is_threshold, 0, open_low=True)


@dataclass
class Algorithm:
    adv_estimator: str
    norm_adv_by_std_in_grpo: bool
    rollout_correction: RolloutCorrection

    def __post_init__(self) -> None:
        _one_of("algorithm.adv_estimator", self.adv_estimator, ("grpo",))


@dataclass
class Reward:
    num_workers: int | None
    timeout: float
    code_timeout: float
    code_memory: int
    feedback_tests: str
    tool_calls: str

    def __post_init__(self) -> None:
        _between("reward.num_workers", self.num_workers, 1)
        _between("reward.timeout", self.timeout, 0, open_low=True)
        _between("reward.code_timeout", self.code_timeout, 0, open_low=True)
        _between("reward.code_memory", self.code_memory, 64)
        _one_of("reward.feedback_tests", self.feedback_tests, ("public", "all"))
        _one_of("reward.tool_calls", self.tool_calls, ("strict", "lenient"))

    def options(self) -> dict[str, Any]:
        """Return what verifiers read from `extra_info` beside the row's own."""
        names = ("code_timeout", "code_memory", "feedback_tests", "tool_calls")
        return {name: getattr(self, name) for name in names}


@dataclass
class CustomReward:
    path: str | None
    name: str


@dataclass
class Trainer:
    project_name: str
    experiment_name: str
    logger: list[str]
    device: str
    n_gpus_per_node: int
    nnodes: int
    total_epochs: int
    total_training_steps: int | None
    val_before_train: bool
    val_only: bool
    test_freq: int
    save_freq: int
    max_actor_ckpt_to_keep: int
    resume_mode: str
    resume_from_path: str | None
    default_local_dir: str
    rollout_data_dir: str
    validation_data_dir: str
    log_dir: str
    max_nonfinite_steps: int
    rollout_overlap: int
    check_memory: bool
    dry_run: bool

    def __post_init__(self) -> None:
        _one_of("trainer.device", self.device, ("auto", "cpu", "cuda"))
        _one_of("trainer.resume_mode", self.resume_mode, ("auto", "disable", "resume_path"))
        _one_of("trainer.rollout_overlap", self.rollout_overlap, (0, 1))
        for name in self.logger:
            _one_of("trainer.logger", name, ("console", "wandb", "tensorboard"))
        for key in ("n_gpus_per_node", "nnodes", "total_epochs", "total_training_steps", "max_actor_ckpt_to_keep", "max_nonfinite_steps"):
            _between(f"trainer.{key}", getattr(self, key), 1)
        for key in ("test_freq", "save_freq"):
            _between(f"trainer.{key}", getattr(self, key), 0)
        if (self.resume_mode == "resume_path") != (self.resume_from_path is not None):
            raise UserError("trainer.resume_from_path goes with trainer.resume_mode=resume_path: set both or neither.")

    @property
    def world_size(self) -> int:
        return self.n_gpus_per_node * self.nnodes


@dataclass
class Config:
    data: Data
    actor_rollout_ref: ActorRolloutRef
    algorithm: Algorithm
    reward: Reward
    custom_reward_function: CustomReward
    trainer: Trainer

    def __post_init__(self) -> None:
        actor, rollout = self.actor_rollout_ref.actor, self.actor_rollout_ref.rollout
        distill, data = actor.self_distillation, self.data
        if self.trainer.val_only:
            return
        if data.train_batch_size % actor.ppo_mini_batch_size:
            raise UserError(
                f"data.train_batch_size={data.train_batch_size} prompts do not divide into mini-batches of "
                f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: set that to a divisor too "
                "(TRAIN_BATCH_SIZE sets both)."
            )
        if self.trainer.rollout_overlap and not rollout.n_gpus:
            raise UserError(
                "trainer.rollout_overlap=1 samples the next step while this one trains, so the engines need GPUs of their own: set "
                "actor_rollout_ref.rollout.n_gpus (on a CPU: the number of engine processes), or trainer.rollout_overlap=0."
            )
        if actor.policy_loss.loss_mode == "sdpo":
            if rollout.n < 2:
                raise UserError(
                    "actor_rollout_ref.rollout.n=1 leaves no peers to show to the teacher: sample at least 2 rollouts a prompt."
                )
            if actor.use_kl_loss:
                raise UserError(
                    "actor_rollout_ref.actor.use_kl_loss=True with loss_mode=sdpo: both would need ref.model, one as "
                    "reference, one as teacher. Use it with loss_mode=vanilla."
                )
            if self.actor_rollout_ref.ref.model.path is not None and distill.teacher_update_rate > 0:
                raise UserError(
                    f"actor_rollout_ref.ref.model.path={self.actor_rollout_ref.ref.model.path!r} is an external teacher and "
                    "stays as it is: set actor_rollout_ref.actor.self_distillation.teacher_update_rate=0."
                )
            if distill.max_reprompt_len < data.max_prompt_length:
                raise UserError(
                    f"max_reprompt_len={distill.max_reprompt_len} cannot hold a prompt of data.max_prompt_length="
                    f"{data.max_prompt_length} tokens, let alone peers: raise "
                    "actor_rollout_ref.actor.self_distillation.max_reprompt_len."
                )
        elif self.actor_rollout_ref.ref.model.path is not None and not actor.use_kl_loss:
            raise UserError(
                f"actor_rollout_ref.ref.model.path={self.actor_rollout_ref.ref.model.path!r} would not be used: with loss_mode=vanilla "
                "it is the reference of actor_rollout_ref.actor.use_kl_loss=True. Set that, or leave the path out."
            )
        budget, longest = actor.ppo_max_token_len_per_gpu, self.longest_sequence
        if budget != "auto" and budget < longest:
            raise UserError(
                f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={budget} cannot hold the longest "
                f"sequence of {longest} tokens: set it to {longest} or more, or lower the length limits."
            )

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt, the teacher's included, with the longest response."""
        actor, prompt = self.actor_rollout_ref.actor, self.data.max_prompt_length
        if actor.policy_loss.loss_mode == "sdpo":
            prompt = max(prompt, actor.self_distillation.max_reprompt_len)
        return prompt + self.data.max_response_length
