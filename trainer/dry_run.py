"""`trainer.dry_run=True`: what a run would do, without loading a model: derived sizes and two teacher prompts."""

from trainer import memory, peers
from trainer.checks import Prepared
from trainer.display import Display
from trainer.types import Group, Outcome, Rollout, Verdict


def report(prepared: Prepared, display: Display) -> None:
    """Print the run's sizes and, for sdpo, the teacher prompts of a mixed and of an all-fail group."""
    config, actor = prepared.config, prepared.config.actor_rollout_ref.actor
    rollout, batch = config.actor_rollout_ref.rollout, config.data.train_batch_size
    if config.trainer.val_only:
        display.say(f"{len(prepared.val)} validation prompts x {rollout.val_kwargs.n} samples of {config.actor_rollout_ref.model.path}")
        return
    lengths = [len(prompt.token_ids) for prompt in prepared.train]
    lines = {
        "loss": actor.policy_loss.loss_mode,
        "model": config.actor_rollout_ref.model.path,
        "training prompts": f"{len(prepared.train)}, {min(lengths)} to {max(lengths)} tokens",
        "steps": f"{prepared.total_steps} of {batch} prompts x {rollout.n} rollouts = {batch * rollout.n} rollouts",
        "optimizer steps per step": f"{batch // actor.ppo_mini_batch_size * actor.ppo_epochs}",
        "ranks": f"{config.trainer.world_size} on {prepared.device}, {rollout.name} engine",
        "longest sequence": f"{config.data.max_prompt_length + config.data.max_response_length} tokens (student)"
        + (f", {actor.self_distillation.max_reprompt_len + config.data.max_response_length} (teacher)" if _distils(prepared) else ""),
        "micro-batch": f"up to {actor.ppo_max_token_len_per_gpu} tokens, logits of {actor.head_chunk} response tokens at once",
    }
    for name, value in lines.items():
        display.say(f"{name:26}{value}")
    if prepared.memory is not None:
        display.show(memory.table(prepared.memory))
    if _distils(prepared):
        k, m = peers.wanted(actor.self_distillation)
        display.say(f"{'peers shown':26}up to {k} success(es) and {m} failure(s)")
        for title, passed in (("a mixed group", 3), ("an all-fail group", 0)):
            _teacher_prompt(prepared, display, title, passed)


def _distils(prepared: Prepared) -> bool:
    return prepared.config.actor_rollout_ref.actor.policy_loss.loss_mode == "sdpo"


def _teacher_prompt(prepared: Prepared, display: Display, title: str, passed: int) -> None:
    """Render what the teacher of the last rollout of a made-up group would read."""
    config = prepared.config
    distill, n = config.actor_rollout_ref.actor.self_distillation, config.actor_rollout_ref.rollout.n
    passed = min(passed, n - 1)
    group = Group(
        prepared.train[0],
        [Rollout(f"(text of rollout {i}, which {'passed' if i < passed else 'failed'})") for i in range(n)],
        [Verdict(Outcome.PASS, 1.0, 1.0) if i < passed else Verdict(Outcome.FAIL, 0.0, 0.0, feedback="(its feedback)") for i in range(n)],
    )
    context = peers.select(group, distill, seed=config.data.seed, step=1)[-1]
    prompt = peers.render(group.prompt, context, distill, prepared.chat)
    display.say(f"\n--- teacher prompt of a failed rollout in {title} ({len(prompt.token_ids)} tokens) ---\n{prompt.text}")
