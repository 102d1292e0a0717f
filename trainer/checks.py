"""Everything that can be wrong with a run, found before a model loads or a process starts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trainer import models, peers, rewards
from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.dataset import PromptOrder, load_prompts
from trainer.errors import UserError
from trainer.types import Prompt
from trainer.workers.setup import choose_device


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
    if config.custom_reward_function.path:
        rewards.CustomVerifier(config.custom_reward_function.path, config.custom_reward_function.name)
    model_config = models.resolve(own.path, "actor_rollout_ref.model.path", trust_remote_code=own.trust_remote_code)
    models.check_architecture(model_config, "actor_rollout_ref.model.path")
    chat = models.load_chat(own.path, config.data.apply_chat_template_kwargs, trust_remote_code=own.trust_remote_code)
    notices = _check_second_model(config, chat, model_config) if trains else []
    train = _read(config, chat, "train", notices) if trains else ()
    val = _read(config, chat, "test", notices) if config.data.val_files or not trains else ()
    prepared = Prepared(config, chat, train, val, device, fingerprint(model_config), notices)
    if trains:
        _ = prepared.order  # refuses a batch larger than the data
        if config.actor_rollout_ref.actor.policy_loss.loss_mode == "sdpo":
            _check_frame(config, chat, max(train, key=lambda prompt: len(prompt.token_ids)))
    return prepared


def _check_second_model(config: Config, chat: Chat, model_config: Any) -> list[str]:
    path, own = config.actor_rollout_ref.ref.model.path, config.actor_rollout_ref.model
    if path is None:
        return []
    other = models.resolve(path, "actor_rollout_ref.ref.model.path", trust_remote_code=own.trust_remote_code)
    models.check_architecture(other, "actor_rollout_ref.ref.model.path")
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
    return loaded.prompts


def _check_frame(config: Config, chat: Chat, longest: Prompt) -> None:
    """Raise UserError if the longest prompt, with headers and closing line but no peer text, exceeds the teacher's budget."""
    distill = config.actor_rollout_ref.actor.self_distillation
    bare = peers.PeerContext(0, (peers.Peer("primary", 1, ""),), (peers.Peer("failure", 2, ""),))
    need = len(peers.render(longest, bare, replace(distill, max_reprompt_len=1 << 40), chat).token_ids)
    if need > distill.max_reprompt_len:
        raise UserError(
            f"actor_rollout_ref.actor.self_distillation.max_reprompt_len={distill.max_reprompt_len}: the longest prompt in its frame "
            f"takes {need} tokens before any peer is shown; raise it to {need + config.data.max_response_length} or more, or lower "
            "data.max_prompt_length."
        )


def fingerprint(model_config: Any) -> str:
    """Return a hash of a model's architecture, the same for a model and for checkpoints trained from it."""
    volatile = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
    kept = {name: value for name, value in model_config.to_dict().items() if name not in volatile}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
