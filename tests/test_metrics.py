"""Metrics against values worked out by hand."""

import numpy as np
import pytest

from tests.tools import distill, group
from trainer import peers
from trainer.metrics import Seen, rollout_metrics, update_metrics
from trainer.peers import Peer, PeerContext
from trainer.peers.render import Cut, TeacherPrompt
from trainer.types import Group, Outcome, Prompt, Rollout, Sample, Verdict


def rollout(tokens: int, finished: bool = True) -> Rollout:
    return Rollout("x", np.zeros(tokens, np.int32), np.zeros(tokens, np.float32), finished)


def test_rollouts():
    prompt = Prompt("u", "tiny_chains", [{"role": "user", "content": "q"}], token_ids=np.zeros(7, np.int32))
    verdicts = [Verdict(Outcome.PASS, 1.0, 1.0), Verdict(Outcome.TRUNCATED, 0.0, 0.0), Verdict(Outcome.FAIL, -0.5, 0.0)]
    out = rollout_metrics([Group(prompt, [rollout(4), rollout(8, finished=False), rollout(3)], verdicts)])
    assert (out["response_length/mean"], out["response_length/max"], out["response_length/min"]) == (5, 8, 3)
    assert out["prompt_length/mean"] == 7
    assert out["response_length/clip_ratio"] == pytest.approx(1 / 3)
    assert out["critic/score/mean"] == pytest.approx(0.5 / 3) and out["critic/score/min"] == -0.5
    assert out["rollout/outcome/pass"] == out["rollout/outcome/truncated"] == pytest.approx(1 / 3)
    assert sum(value for name, value in out.items() if name.startswith("rollout/outcome/")) == pytest.approx(1)


def records(student: list[float], weight: list[float], **more: list[float]) -> dict[str, np.ndarray]:
    named = {"student_logp": student, "importance_weight": weight, "entropy": [0.5] * len(student), **more}
    return {name: np.array(values, np.float32) for name, values in named.items()}


def sample(sampler: list[float]) -> Sample:
    ids = np.zeros(len(sampler), np.int32)
    return Sample("u", 0, 0, ids, ids, np.array(sampler, np.float32))


def test_update():
    samples = [sample([-1.0, -2.0]), sample([-3.0])]  # only the first is trained
    out = update_metrics(samples, {0: records([-1.5, -1.0], [0.5, 2.0], divergence=[0.1, 0.3])}, {"divergence": "d", "absent": "a"})
    assert out["rollout/logp_gap_mean"] == pytest.approx(0.75) and out["rollout/logp_gap_max"] == pytest.approx(1)
    assert out["rollout_corr/kl"] == pytest.approx(-0.25)  # mean of sampler - student
    assert out["rollout_corr/k3_kl"] == pytest.approx(np.mean([np.exp(-0.5) - 1 + 0.5, np.e - 1 - 1]), rel=1e-5)
    assert (out["rollout_corr/rollout_is_min"], out["rollout_corr/rollout_is_max"]) == (0.5, 2)
    assert out["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(2.5**2 / (2 * 4.25))
    assert out["d"] == pytest.approx(0.2) and "a" not in out
    moved = update_metrics(samples, {0: records([9.0, 9.0], [1.0, 1.0], old_logp=[-1.0, -2.0])}, {})
    assert moved["rollout/logp_gap_max"] == 0  # compared before the step
    assert update_metrics(samples, {}, {}) == {}


def test_prompts_seen_and_solved_over_the_run():
    seen = Seen()
    seen.update([group([0, 1], uid="a"), group([0, 0], uid="b")], threshold=1.0)
    out = seen.update([group([0, 0], uid="a"), group([1, 1], uid="c")], threshold=1.0)
    assert out["self_distillation/uid_seen_count"] == 3
    assert out["self_distillation/uid_ever_success_count"] == 2
    assert out["self_distillation/uid_never_success_count"] == 1
    assert out["self_distillation/uid_ever_success_fraction"] == pytest.approx(2 / 3)
    assert Seen(**seen.state()).update([group([1], uid="b")], threshold=1.0)["self_distillation/uid_never_success_count"] == 0


def test_peers_of_a_step_worked_out_by_hand():
    """Two groups of two: the first with a success, cuts and markers, the second all failed with feedback for one."""
    groups = [group([1, 0]), group([0, 0], feedback=["say why", ""], uid="v")]
    success, failure = Peer("primary", 0, "yes"), Peer("failure", 1, "no")
    contexts = [
        [PeerContext(0, (), (failure,)), PeerContext(1, (success, Peer("another", 2, "also")), ())],
        [PeerContext(0, (), (), "say why"), PeerContext(1)],
    ]

    def prompt(tokens: int, *shown: str, cuts: tuple[Cut, ...] = (), markers: int = 0) -> TeacherPrompt:
        return TeacherPrompt(np.zeros(tokens, np.int32), cuts, "", shown, markers)

    rendered = {
        (0, 0): prompt(10, cuts=(Cut("failure", 1, 8, 0),)),  # dropped whole: nothing is left to show
        (0, 1): prompt(20, "primary", "another", cuts=(Cut("primary", 0, 9, 4),), markers=2),
        (1, 0): prompt(40, "feedback"),
        (1, 1): prompt(5),
    }
    out = peers.metrics(groups, contexts, rendered, distill())
    wanted = {
        "success_group_fraction": 1 / 2,
        "success_sample_fraction": 1 / 4,
        "another_solution_fraction": 1 / 4,
        "failure_solution_fraction": 0,
        "feedback_available_fraction": 1 / 4,
        "feedback_used_fraction": 1 / 4,
        "reprompt_sample_fraction": 2 / 4,
        "empty_context_fraction": 1 / 4,
        "teacher_prompt_length/mean": 30,
        "teacher_prompt_length/max": 40,
        "teacher_prompt_length/min": 20,
        "teacher_prompt_length/clip_ratio": 2 / 4,
        "peers_dropped": 1,
        "peers_cut": 1,
        "peer_tokens_cut": 8 + 5,
        "primary_cut_fraction": 1 / 4,
        "another_cut_fraction": 0,
        "failure_cut_fraction": 1 / 4,
        "feedback_cut_fraction": 0,
        "markers_broken": 2,
        "contexts_per_group": 3 / 2,
    }
    assert out == {f"self_distillation/{name}": pytest.approx(value) for name, value in wanted.items()}
