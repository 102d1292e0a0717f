"""Health: the group shares, and that each warning comes when it should, once, and names the key to turn."""

import numpy as np
import pytest

from tests.tools import distill, group
from trainer.health import RULES, WINDOW, Monitor, health_metrics
from trainer.types import Sample


def test_group_shares_and_divergence_by_verdict():
    groups = [group([1, 1, 0, 0]), group([0, 0, 0, 0]), group([1, 1, 1, 1]), group([0, 1, 0, 0])]

    def sample(g, i, passed):
        return Sample("u", g, i, np.array([1]), np.array([1, 2]), np.zeros(2), passed=passed)

    samples = [sample(0, 0, True), sample(0, 2, False), sample(1, 0, False)]
    records = {i: {"divergence": np.array([0.5, value])} for i, value in enumerate((0.1, 0.3, 0.5))}
    out = health_metrics(groups, samples, records, distill())
    assert [out[f"health/groups_{kind}"] for kind in ("all_fail", "all_pass", "lone_success", "mixed")] == [0.25] * 4
    assert out["health/distilled_fraction"] == pytest.approx(3 / 16)
    assert out["health/divergence_passed"] == pytest.approx(0.3) and out["health/divergence_failed"] == pytest.approx(0.45)
    assert out["health/divergence_first_token"] == 0.5


WELL = {
    "health/distilled_fraction": 0.9,
    "response_length/clip_ratio": 0.0,
    "rollout/logp_gap_mean": 1e-6,
    "actor/entropy": 0.5,
    "critic/score/mean": 0.4,
    "health/repetition": 0.02,
    "health/divergence_first_token": 0.02,
    "self_distillation/divergence": 0.02,
    "self_distillation/teacher_prompt_length/clip_ratio": 0.0,
    "rollout/outcome/error": 0.0,
}

TROUBLE = [
    ("idle", {"health/distilled_fraction": 0.01}, "actor_rollout_ref.rollout.n"),
    ("truncation", {"response_length/clip_ratio": 0.3}, "data.max_response_length"),
    ("sampler gap", {"rollout/logp_gap_mean": 0.2}, "stale weights"),
    ("entropy collapse", {"actor/entropy": 0.01}, "optim.lr"),
    ("repetition", {"health/repetition": 0.6}, "resume_path"),
    ("score collapse", {"critic/score/mean": 0.1}, "teacher_update_rate"),
    ("first token", {"health/divergence_first_token": 0.69}, "dry_run"),
    ("peers cut", {"self_distillation/teacher_prompt_length/clip_ratio": 0.5}, "max_reprompt_len"),
    ("verifier errors", {"rollout/outcome/error": 0.2}, "reward.timeout"),
]


def test_every_rule_is_tested():
    assert [name for name, _, _ in TROUBLE] == [rule.name for rule in RULES]


@pytest.mark.parametrize(("name", "change", "named"), TROUBLE)
def test_trouble_is_said_once_and_again_after_recovery(name, change, named):
    monitor = Monitor()
    assert not any(monitor.check(WELL) for _ in range(2 * WINDOW))
    said = [warning for _ in range(3 * WINDOW) for warning in monitor.check({**WELL, **change})]
    assert [warning.split(":")[0] for warning in said] == [name] and named in said[0]
    assert not any(monitor.check(WELL) for _ in range(3 * WINDOW))
    again = [warning for _ in range(3 * WINDOW) for warning in monitor.check({**WELL, **change})]
    assert len(again) == 1


def test_entropy_may_fall_when_the_task_is_solved():
    monitor = Monitor()
    for _ in range(WINDOW):
        monitor.check(WELL)
    assert not any(monitor.check({**WELL, "actor/entropy": 0.01, "critic/score/mean": 0.97}) for _ in range(3 * WINDOW))


def test_state_goes_on_where_it_was():
    monitor, other = Monitor(), Monitor()
    for _ in range(WINDOW):
        monitor.check(WELL)
    other.restore(monitor.state())
    bad = {**WELL, "actor/entropy": 0.001}
    assert [monitor.check(bad) for _ in range(2 * WINDOW)] == [other.check(bad) for _ in range(2 * WINDOW)]
