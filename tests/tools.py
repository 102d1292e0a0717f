"""Helpers of the tests: small models, data, groups and runs."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from data.preprocess import to_row, write_parquet
from experiments.tiny import base, chains
from experiments.tiny.tokenizer import make_tokenizer
from trainer import checks, config
from trainer.config.schema import Config, SelfDistillation
from trainer.display import Display
from trainer.divergence import Divergence, token_divergence
from trainer.models import load_chat
from trainer.scores import Scores
from trainer.session import started
from trainer.types import Group, Outcome, Prompt, Rollout, Verdict

ROOT = Path(__file__).resolve().parent.parent


def make_random_model(folder: Path, *, seed: int = 0, words: tuple[str, ...] = (), **shape) -> Path:
    """Write a Qwen3 folder with random weights and the chains tokenizer."""
    folder.mkdir(parents=True)
    make_tokenizer(folder, [*"0123456789", "+-*=", "Answer:", *words], distill())
    tokenizer = load_chat(str(folder), {}).tokenizer
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"head_dim": 8, "tie_word_embeddings": True}
    model_config = Qwen3Config(
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **shape},
    )
    AutoModelForCausalLM.from_config(model_config).save_pretrained(folder)
    return folder


def make_guessing_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a model that answers `Answer:` and one of 0, 1, 2 at random: a third of its attempts pass on `write_chains`."""
    make_tokenizer(folder, [*"0123456789", "+-*=", "Answer:"], distill())
    chat = load_chat(str(folder), {})

    def draw(rng: np.random.Generator) -> base.Example:
        return base.example(chat, chat.prompt_ids([{"role": "user", "content": _problem(rng)}]), f"Answer:{rng.integers(3)}")

    # heads of 32: the smallest that vLLM's CPU build computes
    shape = base.Shape(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    base.warm_up(folder, chat, shape, base.WarmUp(steps=80, batch=16, lr=1e-2, seed=seed), draw, "guessing")
    return folder


def _problem(rng: np.random.Generator, answers: str = "012") -> str:
    while (problem := chains.draw_problem(rng, 5)) and chains.solve(problem)[-1] not in answers:
        pass
    return problem


def write_chains(folder: Path, *, train: int, test: int, answers: str = "012") -> Path:
    """Write chains with these answers as Parquet."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        problems = [_problem(rng, answers) for _ in range(count)]
        records = [
            {"kind": "tiny", "dataset": "tiny_chains", "prompt": p, "answer": chains.solve(p)[-1], "idx": i} for i, p in enumerate(problems)
        ]
        write_parquet((to_row(record, split, "test") for record in records), folder / f"{split}.parquet")
    return folder


@functools.cache
def _sdpo() -> SelfDistillation:
    return config.load("sdpo").actor_rollout_ref.actor.self_distillation


def distill(**changes) -> SelfDistillation:
    """Return the self-distillation settings of MOPD (2 successes + 1 failure, always), with changes."""
    mopd = {"include_another_solution": True, "include_failure_solution": True, "failure_solution_condition": "always"}
    return dataclasses.replace(_sdpo(), **{**mopd, **changes})


def group(scores, *, texts=None, finished=None, outcomes=None, feedback=None, uid="u", prompt=None) -> Group:
    """Return a group whose rollouts score as given; text of rollout i is `text i` unless given."""
    n = len(scores)
    verdicts = [
        Verdict(
            outcomes[i] if outcomes else Outcome.PASS if scores[i] >= 1 else Outcome.FAIL,
            float(scores[i]),
            float(scores[i]),
            feedback=feedback[i] if feedback else "",
        )
        for i in range(n)
    ]
    rollouts = [Rollout(texts[i] if texts else f"text {i}", finished=finished[i] if finished else True) for i in range(n)]
    return Group(prompt or Prompt(uid, "tiny_chains", [{"role": "user", "content": "1+1"}]), rollouts, verdicts)


def overrides(model: Path, data: Path, out: Path, *more: str, batch: int = 4, n: int = 4) -> list[str]:
    """Return the overrides of a short run on chains."""
    return [
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files=[{data}]",
        f"data.val_files=[{data}]",
        "data.max_prompt_length=32",
        "data.max_response_length=40",
        f"data.train_batch_size={batch}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={batch}",
        f"actor_rollout_ref.rollout.n={n}",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "actor_rollout_ref.actor.self_distillation.include_another_solution=True",
        "actor_rollout_ref.actor.self_distillation.include_failure_solution=True",
        "actor_rollout_ref.actor.self_distillation.failure_solution_condition=always",
        "actor_rollout_ref.actor.self_distillation.max_reprompt_len=256",
        "actor_rollout_ref.actor.self_distillation.distillation_topk=16",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "trainer.device=cpu",
        "trainer.test_freq=0",
        "trainer.save_freq=0",
        "trainer.total_training_steps=3",
        f"trainer.default_local_dir={out}/checkpoints",
        f"trainer.rollout_data_dir={out}/rollouts",
        f"trainer.validation_data_dir={out}/validation",
        f"trainer.log_dir={out}/logs",
        *more,
    ]


def in_process(cfg: Config):
    """Return a context manager with the loop of a run in this process, silent."""
    return started(checks.prepare(cfg), Display(enabled=False), in_process=True)


def plain_scores(logits: torch.Tensor, second: torch.Tensor | None, targets: torch.Tensor, divergence: Divergence | None) -> Scores:
    """What `trainer.scores` computes, from whole logits and by autograd: the definition."""
    logp, chosen = logits.log_softmax(-1), targets[:, None]
    distance = mass = None
    if divergence is not None:
        words = min(logits.shape[-1], second.shape[-1])
        options = {"alpha": divergence.alpha, "topk": divergence.topk, "add_tail": divergence.add_tail}
        distance = token_divergence(logits[:, :words], second[:, :words], **options)
        mass = logits[:, :words].softmax(-1).topk(min(divergence.topk or words, words), -1).values.sum(-1)
    return Scores(
        student_logp=logp.gather(-1, chosen)[:, 0],
        entropy=-(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1),
        second_logp=None if second is None else second.log_softmax(-1).gather(-1, chosen)[:, 0],
        divergence=distance,
        topk_mass=mass,
    )
