"""Objectives: aggregation, importance weights, the published loss vectors, what is trained and what is not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import group, plain_scores
from trainer import config, objectives
from trainer.chat import Chat
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.models import load_chat
from trainer.objectives.aggregate import LOSS_AGG_MODES, sequence_weights
from trainer.objectives.base import Objective, Tokens
from trainer.objectives.importance import sampler_weight, truncated_ratio
from trainer.objectives.kl import kl_estimate
from trainer.objectives.vanilla import grpo_advantages
from trainer.types import Group, Outcome, Prompt, Rollout, Verdict

STUDENT = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
TEACHER = torch.tensor([[0.5, 2.0, 1.0, -0.5, -3.0]])
STUDENT_ENTROPY = float(torch.distributions.Categorical(logits=STUDENT).entropy())
KEY = "actor_rollout_ref.actor"


@pytest.fixture(scope="module")
def chat(random_model) -> Chat:
    return load_chat(str(random_model), {})


def sampled_logp(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def loss_of(objective: Objective, student: torch.Tensor, second: torch.Tensor | None, known: Tokens):
    """The objective's loss, given the scores of whole logits."""
    return objective.token_loss(plain_scores(student, second, known.targets, objective.divergence), known)


def settings(name: str = "sdpo", *overrides: str) -> Config:
    return config.load(name, list(overrides))


def tokens(target: int = 1, *, sampler: float | None = None, old: float | None = None, advantage: float = 0.0, ratio: float | None = None):
    logp = sampled_logp(STUDENT, torch.tensor([target]))
    return Tokens(
        targets=torch.tensor([target]),
        sampler_logp=logp if sampler is None else torch.tensor([sampler]),
        advantage=torch.tensor([advantage]),
        old_logp=None if old is None else torch.tensor([old]),
        sequence_log_ratio=None if ratio is None else torch.tensor([ratio]),
    )


# aggregation


@given(st.sampled_from(list(LOSS_AGG_MODES)), st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_aggregation_is_the_formula_of_its_name(mode, lengths):
    losses = [np.arange(1, n + 1, dtype=float) * (i + 1) for i, n in enumerate(lengths)]
    weights = sequence_weights(mode, lengths, max_response_length=20)
    got = sum(float((loss * weight).sum()) for loss, weight in zip(losses, weights, strict=True))
    full = [loss for loss in losses if len(loss)]
    if not full:
        assert got == 0
        return
    wanted = {
        "token-mean": np.concatenate(full).mean(),
        "seq-mean-token-sum": np.mean([loss.sum() for loss in full]),
        "seq-mean-token-mean": np.mean([loss.mean() for loss in full]),
        "seq-mean-token-sum-norm": np.mean([loss.sum() for loss in full]) / 20,
    }[mode]
    assert got == pytest.approx(wanted)


# importance weights


def test_truncated_importance_published_vector():
    assert truncated_ratio(torch.tensor([0.0, 1.0, -1.0, 30.0]), 2.0).tolist() == pytest.approx([1, 2, 0.367879, 2], abs=1e-6)
    assert torch.isfinite(truncated_ratio(torch.tensor([1e6, -1e6]), 2.0)).all()


def test_weights_against_the_sampler():
    student = torch.tensor([-1.0], requires_grad=True)
    assert sampler_weight(tokens(sampler=-1.5), student, mode="token", cap=2.0).item() == pytest.approx(np.exp(0.5))
    assert sampler_weight(tokens(sampler=-9.0), student, mode="token", cap=2.0).item() == pytest.approx(2.0)
    assert sampler_weight(tokens(sampler=-9.0), student, mode=None, cap=2.0).item() == 1.0
    assert sampler_weight(tokens(ratio=0.1), student, mode="sequence", cap=2.0).item() == pytest.approx(np.exp(0.1))
    # with several optimizer steps the student before the step counts, not the moving one
    assert sampler_weight(tokens(sampler=-1.5, old=-1.2), student, mode="token", cap=2.0).item() == pytest.approx(np.exp(0.3))
    assert not sampler_weight(tokens(sampler=-1.5), student, mode="token", cap=2.0).requires_grad


# sdpo


def sdpo_loss(cfg: Config, known: Tokens, student=STUDENT):
    return loss_of(objectives.build(cfg), student, TEACHER, known)


def test_sdpo_loss_is_the_divergence():
    loss, records = sdpo_loss(settings("sdpo", f"{KEY}.self_distillation.distillation_topk=2"), tokens())
    assert loss.item() == pytest.approx(0.143211, abs=5e-7)
    assert records["divergence"].item() == pytest.approx(0.143211, abs=5e-7)
    assert records["importance_weight"].item() == pytest.approx(1.0)


def test_sampled_token_surrogate_published_vector():
    cfg = settings("sdpo", f"{KEY}.self_distillation.full_logit_distillation=False", f"{KEY}.self_distillation.alpha=1.0")
    student = STUDENT.clone().requires_grad_()
    loss, _ = sdpo_loss(cfg, tokens(1), student)
    assert loss.item() == pytest.approx(1.354956, abs=5e-7)
    # its expected gradient under the student is that of KL(student || teacher)
    total = torch.zeros(1, 5)
    for word in range(5):
        student = STUDENT.clone().requires_grad_()
        loss, _ = sdpo_loss(cfg, tokens(word), student)
        loss.sum().backward()
        total += torch.softmax(STUDENT, -1)[0, word] * student.grad
    reverse = STUDENT.clone().requires_grad_()
    (reverse.softmax(-1) * (reverse.log_softmax(-1) - TEACHER.log_softmax(-1))).sum().backward()
    assert torch.allclose(total, reverse.grad, atol=1e-6)


def test_is_clip_counts_with_several_optimizer_steps_only():
    cfg = settings("sdpo", "algorithm.rollout_correction.rollout_is=null")
    now = sampled_logp(STUDENT, torch.tensor([1])).item()
    on_policy, _ = sdpo_loss(cfg, tokens())
    moved, _ = sdpo_loss(cfg, tokens(old=now - 0.5))
    far, _ = sdpo_loss(cfg, tokens(old=now - 5))
    assert moved.item() == pytest.approx(on_policy.item() * np.exp(0.5), rel=1e-5)
    assert far.item() == pytest.approx(on_policy.item() * 2.0, rel=1e-5)
    off, _ = sdpo_loss(
        settings("sdpo", "algorithm.rollout_correction.rollout_is=null", f"{KEY}.self_distillation.is_clip=null"), tokens(old=now - 5)
    )
    assert off.item() == pytest.approx(on_policy.item())


def chains_group(scores, lengths=None, uid="u"):
    prompt = Prompt(uid, "tiny_chains", [{"role": "user", "content": "1+2"}], token_ids=np.array([5, 6, 7], np.int32))
    base = group(scores, prompt=prompt, texts=[f"1+2={i}" for i in range(len(scores))])
    rollouts = [
        Rollout(r.text, np.arange(n, dtype=np.int32), np.zeros(n, np.float32))
        for r, n in zip(base.rollouts, lengths or [3] * len(scores), strict=True)
    ]
    return Group(prompt, rollouts, base.verdicts)


def mopd(*more: str) -> Config:
    distill = f"{KEY}.self_distillation"
    return settings(
        "sdpo",
        f"{distill}.include_another_solution=True",
        f"{distill}.include_failure_solution=True",
        f"{distill}.failure_solution_condition=always",
        *more,
    )


def test_sdpo_trains_on_rollouts_with_a_context_and_shares_the_rendering(chat):
    groups = [chains_group([1, 0, 0, 1], uid="mixed"), chains_group([0, 0, 0, 0], uid="fail"), chains_group([1, 1, 1, 1], uid="pass")]
    batch = objectives.build(mopd()).prepare(groups, chat, step=1)
    assert [(s.group, s.index) for s in batch.samples] == [(g, i) for g in range(3) for i in range(4)]
    assert [s.passed for s in batch.samples[:4]] == [True, False, False, True]
    by_context = {id(s.context_ids) for s in batch.samples[4:8]}
    assert len(by_context) == 2  # all but the shown failure share one prompt
    fractions = {
        name: batch.metrics[f"self_distillation/{name}"]
        for name in ("success_group_fraction", "reprompt_sample_fraction", "failure_solution_fraction")
    }
    assert fractions == {
        "success_group_fraction": pytest.approx(2 / 3),
        "reprompt_sample_fraction": 1.0,
        "failure_solution_fraction": pytest.approx(2 / 3),
    }


def test_sdpo_leaves_out_rollouts_with_nothing_to_learn_from(chat):
    sdpo = settings("sdpo")  # one success, no failures
    groups = [chains_group([1, 0, 0]), chains_group([0, 0, 0]), chains_group([1, 1, 0], lengths=[2, 0, 2])]
    batch = objectives.build(sdpo).prepare(groups, chat, step=1)
    # the lone success of group 0, all of group 1, and the empty response of group 2 are out
    assert [(s.group, s.index) for s in batch.samples] == [(0, 1), (0, 2), (2, 0), (2, 2)]
    assert batch.metrics["self_distillation/reprompt_sample_fraction"] == pytest.approx(5 / 9)


# vanilla


def test_grpo_advantages():
    assert grpo_advantages([1, 0, 0, 1], normalise_by_std=False).tolist() == [0.5, -0.5, -0.5, 0.5]
    normal = grpo_advantages([1, 0, 0, 1], normalise_by_std=True)
    assert normal[0] == pytest.approx(0.5 / (np.std([1, 0, 0, 1], ddof=1) + 1e-6))
    assert grpo_advantages([0.7], normalise_by_std=True).tolist() == [0.7]


def test_grpo_runs_no_pass_for_a_zero_advantage_but_counts_it(chat):
    groups = [chains_group([1, 0]), chains_group([1, 1])]
    batch = objectives.build(settings("baseline_grpo")).prepare(groups, chat, step=1)
    assert [s.active for s in batch.samples] == [True, True, False, False]
    with_kl = objectives.build(settings("baseline_grpo", f"{KEY}.use_kl_loss=True")).prepare(groups, chat, step=1)
    assert all(s.active and s.context_ids is s.prompt_ids for s in with_kl.samples)


def test_a_rollout_that_could_not_be_judged_is_neither_punished_nor_counted(chat):
    assert grpo_advantages([1, 0, np.nan, 1], normalise_by_std=False) == pytest.approx([1 / 3, -2 / 3, 0, 1 / 3])
    assert grpo_advantages([1, 0, np.nan], normalise_by_std=True) == pytest.approx([0.5**0.5, -(0.5**0.5), 0], rel=1e-5)
    assert grpo_advantages([np.nan, np.nan], normalise_by_std=True).tolist() == [0, 0]
    judged = chains_group([1, 1, 1, 0])
    broken = Group(judged.prompt, judged.rollouts, [*judged.verdicts[:3], Verdict(Outcome.ERROR, 0.0, 0.0)])
    batch = objectives.build(settings("baseline_grpo")).prepare([broken], chat, step=1)
    assert [s.advantage for s in batch.samples] == [0, 0, 0, 0] and not any(s.active for s in batch.samples)


def test_an_entropy_bonus_keeps_zero_advantages_in_training(chat):
    batch = objectives.build(settings("baseline_grpo", f"{KEY}.entropy_coeff=0.1")).prepare([chains_group([1, 1])], chat, step=1)
    assert all(s.active for s in batch.samples)


def vanilla(advantage, old, *overrides):
    student = STUDENT.clone().requires_grad_()
    objective = objectives.build(settings("baseline_grpo", "algorithm.rollout_correction.rollout_is=null", *overrides))
    loss, records = loss_of(objective, student, None, tokens(old=old, advantage=advantage))
    loss.sum().backward()
    return loss.item(), records, student.grad


def test_ppo_clipping():
    now = sampled_logp(STUDENT, torch.tensor([1])).item()
    on_policy, _, grad = vanilla(1.0, None)
    assert on_policy == pytest.approx(-1.0) and grad[0, 1] < 0  # the sampled word is pushed up
    for log_ratio, advantage, wanted, clipped in (
        (0.1, 1.0, -np.exp(0.1), 0),
        (0.5, 1.0, -1.28, 1),  # clip-higher
        (-0.5, -1.0, 0.8, 1),
        (0.5, -1.0, np.exp(0.5), 0),
        (2.0, -1.0, 3.0, 0),  # dual clip
    ):
        loss, records, grad = vanilla(advantage, now - log_ratio)
        assert loss == pytest.approx(wanted, rel=1e-5)
        assert records["clipped"].item() == clipped
        assert records["clipped_lower"].item() == (log_ratio == 2.0)
        assert (grad.abs().sum() > 0) == (not clipped and log_ratio != 2.0)


def test_kl_to_a_reference_and_entropy_bonus():
    cfg = settings("baseline_grpo", f"{KEY}.use_kl_loss=True", f"{KEY}.kl_loss_coef=0.5", f"{KEY}.entropy_coeff=0.1")
    objective = objectives.build(cfg)
    assert objective.second_model == "reference"
    loss, records = loss_of(objective, STUDENT, TEACHER, tokens(advantage=0.0))
    log_ratio = (sampled_logp(STUDENT, torch.tensor([1])) - sampled_logp(TEACHER, torch.tensor([1]))).item()
    k3 = np.exp(-log_ratio) - 1 + log_ratio
    assert records["reference_kl"].item() == pytest.approx(k3, rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * k3 - 0.1 * STUDENT_ENTROPY, rel=1e-5)


def test_entropy_bonus_of_the_distillation_loss():
    with_bonus, plain = (
        loss_of(objectives.build(settings("sdpo", f"{KEY}.entropy_coeff={c}")), STUDENT, TEACHER, tokens())[0].item() for c in (0.1, 0.0)
    )
    assert with_bonus == pytest.approx(plain - 0.1 * STUDENT_ENTROPY, rel=1e-5)


@pytest.mark.parametrize(("kind", "wanted"), [("kl", -0.5), ("abs", 0.5), ("mse", 0.125), ("low_var_kl", np.exp(0.5) - 1.5)])
def test_kl_estimates(kind, wanted):
    assert kl_estimate(kind, torch.tensor([-1.5]), torch.tensor([-1.0])).item() == pytest.approx(wanted, rel=1e-6)


def test_unknown_loss_mode_lists_the_known():
    with pytest.raises(UserError, match=r"loss_mode='spdo'.*sdpo, vanilla"):
        objectives.check("spdo")


def test_verdict_record_has_the_published_keys():
    record = Verdict(Outcome.FAIL, 0.0, 0.5, pred="B", feedback="no", details={"timed_out": False}).record()
    assert {"score", "acc", "pred", "incorrect_format", "feedback", "timed_out"} <= record.keys()
