"""Everything that can be wrong with a run, found before a model loads or a process starts."""

import hashlib
import json
import netrc
import os
import traceback
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer import engines, memory, models, peers, rewards
from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.dataset import PromptOrder, load_prompts
from trainer.errors import UserError
from trainer.memory import MemoryPlan
from trainer.rewards.sandbox import Job, Limits, Sandbox, SandboxError
from trainer.types import Prompt
from trainer.workers.setup import choose_device, max_model_len


@dataclass(frozen=True)
class Prepared:
    """A run that has passed all checks. `notices` are what the user should know of it."""

    config: Config
    chat: Chat
    train: Sequence[Prompt]
    val: Sequence[Prompt]
    device: str
    model_fingerprint: str
    notices: Sequence[str] = field(default_factory=tuple)
    memory: MemoryPlan | None = None  # of a rank that trains

    @property
    def order(self) -> PromptOrder:
        """The order of the training prompts."""
        data = self.config.data
        return PromptOrder(len(self.train), data.train_batch_size, data.seed, data.shuffle)

    @property
    def total_steps(self) -> int:
        """How many training steps the run has in all."""
        trainer = self.config.trainer
        return trainer.total_training_steps or trainer.total_epochs * self.order.steps_per_epoch


def prepare(config: Config) -> Prepared:
    """Check devices, models, vocabularies, verifiers and data, and read the prompts. Raises UserError for what is wrong."""
    trains, own = not config.trainer.val_only, config.actor_rollout_ref.model
    device = choose_device(config)
    engines.check_installed(config.actor_rollout_ref.rollout.name)
    model_config = models.resolve(own.path, "actor_rollout_ref.model.path", trust_remote_code=own.trust_remote_code)
    models.check_architecture(model_config, "actor_rollout_ref.model.path")
    weights = models.check_weights(own.path, "actor_rollout_ref.model.path")
    _check_outputs(config)
    chat = models.load_chat(own.path, config.data.apply_chat_template_kwargs, trust_remote_code=own.trust_remote_code)
    notices = _check_second_model(config, chat, model_config) if trains else []
    process = memory.process_bytes() if trains else 0
    train = _read(config, chat, "train", notices) if trains else ()
    val = _read(config, chat, "test", notices) if config.data.val_files or not trains else ()
    if config.custom_reward_function.path:
        _try_reward(config, (*train, *val)[0])
    elif any(rewards.is_code(source) for source in {prompt.data_source for prompt in (*train, *val)}):
        _try_sandbox(notices)
    prepared = Prepared(config, chat, train, val, device, fingerprint(model_config) + weights, notices)
    if trains:
        _ = prepared.order  # refuses a batch larger than the data
        longest, context = max(train, key=lambda prompt: len(prompt.token_ids)), None
        if config.actor_rollout_ref.actor.policy_loss.loss_mode == "sdpo":
            context = _check_frame(config, chat, longest)
        known = {"own": model_config, "prompt": len(longest.token_ids), "context": context, "process": process}
        config, plan = _plan_memory(config, device, known, notices)
        prepared = replace(prepared, config=config, memory=plan)
    return prepared


def _plan_memory(config: Config, device: str, known: dict[str, Any], notices: list[str]) -> tuple[Config, MemoryPlan | None]:
    """Return the configuration with numbers for `auto`, and what it needs; raise UserError if that is not there."""
    free = memory.free_bytes(device)
    try:
        planner = memory.Planner(config, device=device, free=free, **known)
        config, plan = planner.resolve(config)
    except UserError:
        raise
    except Exception as error:  # a model's own code may not run without data
        if config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu == "auto":
            raise UserError(
                f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu=auto: this model's memory cannot be predicted ({error!r}); "
                "give a number."
            ) from error
        notices.append(f"this model's memory cannot be predicted ({error!r}): whether it fits shows when it runs")
        return config, None
    notices += planner.check(config, plan)
    return config, plan


def _check_second_model(config: Config, chat: Chat, model_config: Any) -> list[str]:
    path, own = config.actor_rollout_ref.ref.model.path, config.actor_rollout_ref.model
    if path is None:
        return []
    other = models.resolve(path, "actor_rollout_ref.ref.model.path", trust_remote_code=own.trust_remote_code)
    models.check_architecture(other, "actor_rollout_ref.ref.model.path")
    models.check_weights(path, "actor_rollout_ref.ref.model.path")
    other_chat = models.load_chat(path, config.data.apply_chat_template_kwargs, trust_remote_code=own.trust_remote_code)
    notice = models.check_same_vocabulary(chat, other_chat, model_config, other)
    return [notice] if notice else []


def _read(config: Config, chat: Chat, split: str, notices: list[str]) -> tuple[Prompt, ...]:
    data = config.data
    files, key, env = (
        (data.train_files, "data.train_files", "DATA_PATH") if split == "train" else (data.val_files, "data.val_files", "VAL_DATA_PATH")
    )
    if not files:
        raise UserError(f"{key} is empty: name Parquet files, or folders that hold {split}.parquet ({env}).")
    loaded = load_prompts(
        files,
        chat,
        split=split,
        max_prompt_length=data.max_prompt_length,
        drop_overlong=data.filter_overlong_prompts,
        any_source=config.custom_reward_function.path is not None,
    )
    if loaded.too_long:
        notices.append(
            f"{loaded.too_long} of {loaded.too_long + len(loaded.prompts)} prompts in {key} are longer than "
            f"data.max_prompt_length={data.max_prompt_length} tokens and left out"
        )
    _check_lengths(config, loaded.prompts)
    return loaded.prompts


def _check_lengths(config: Config, prompts: Sequence[Prompt]) -> None:
    """Raise UserError naming a prompt that leaves no room for a whole response in the engine's context."""
    limit, response = max_model_len(config), config.data.max_response_length
    over = [prompt for prompt in prompts if len(prompt.token_ids) + response > limit]
    if over:
        worst = max(over, key=lambda prompt: len(prompt.token_ids))
        raise UserError(
            f"actor_rollout_ref.rollout.max_model_len={limit}: {len(over)} of {len(prompts)} prompts leave less than "
            f"data.max_response_length={response} tokens for the response; the longest, uid {worst.uid!r}, has {len(worst.token_ids)}. "
            f"Raise max_model_len to {len(worst.token_ids) + response}, or lower data.max_prompt_length."
        )


def _try_reward(config: Config, prompt: Prompt) -> None:
    """Call the user's reward function once, on an empty response: what it raises there it would raise all through the run."""
    custom = config.custom_reward_function
    verifier = rewards.CustomVerifier(str(custom.path), custom.name)
    try:
        verifier(prompt.data_source, "", prompt.ground_truth, {**prompt.extra_info, "truncated": False})
    except Exception as error:  # noqa: BLE001  the user's code may raise anything
        where = traceback.format_exc().strip()
        raise UserError(
            f"custom_reward_function: {custom.name} of {custom.path} raised {type(error).__name__}: {error} for an empty response to "
            f"the first prompt. It is called as {custom.name}(data_source=, solution_str=, ground_truth=, extra_info=).\n{where}"
        ) from None


def _try_sandbox(notices: list[str]) -> None:
    """Run one program: a sandbox that cannot start would make every verdict an error. What it does not hold back is said."""
    sandbox = Sandbox()
    try:
        result = sandbox.run([Job("run", "print(6 * 7)")], Limits())
    except SandboxError as error:
        raise UserError(f"the code sandbox cannot run programs here: {error}") from None
    finally:
        sandbox.close()
    if result.stdout != "42\n":
        raise UserError(f"the code sandbox cannot run programs here: a first program printed {result.stdout!r} and ended as {result}.")
    notices.extend(sandbox.weaknesses())


def _check_outputs(config: Config) -> None:
    """Raise UserError unless each output folder is there or can be made, and written to."""
    for name in ("default_local_dir", "rollout_data_dir", "validation_data_dir", "log_dir"):
        folder = Path(getattr(config.trainer, name)).absolute()
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise UserError(f"trainer.{name}={folder}: {nearest} is a file, not a folder.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(f"trainer.{name}={folder}: {nearest} cannot be written to.")
    if "wandb" in config.trainer.logger:
        mode = os.environ.get("WANDB_MODE", "online")
        if mode not in ("online", "offline", "disabled"):
            raise UserError(f"WANDB_MODE={mode}: must be online, offline or disabled.")
        if mode == "online" and not _has_wandb_account():
            raise UserError("trainer.logger names wandb, but there is no account here: wandb login, WANDB_API_KEY, or WANDB_MODE=offline.")


def _has_wandb_account() -> bool:
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return bool(os.environ.get("WANDB_API_KEY")) or (file.is_file() and netrc.netrc(file).authenticators(host) is not None)


def _check_frame(config: Config, chat: Chat, longest: Prompt) -> int:
    """Return how long a teacher prompt can be, feedback aside.

    Raises UserError if the longest prompt, with headers and closing line but no peer text, exceeds the teacher's budget.
    """
    distill = config.actor_rollout_ref.actor.self_distillation
    bare = peers.PeerContext(0, (peers.Peer("primary", 1, ""),), (peers.Peer("failure", 2, ""),))
    need = len(peers.render(longest, bare, replace(distill, max_reprompt_len=1 << 40), chat).token_ids)
    if need > distill.max_reprompt_len:
        raise UserError(
            f"actor_rollout_ref.actor.self_distillation.max_reprompt_len={distill.max_reprompt_len}: the longest prompt in its frame "
            f"takes {need} tokens before any peer is shown; raise it to {need + config.data.max_response_length} or more, or lower "
            "data.max_prompt_length."
        )
    return min(distill.max_reprompt_len, need + sum(peers.wanted(distill)) * config.data.max_response_length)


def fingerprint(model_config: Any) -> str:
    """Return a hash of a model's architecture, the same for a model and for checkpoints trained from it."""
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    kept = {name: value for name, value in model_config.to_dict().items() if name not in volatile}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
