"""mean@k, pass@k, maj@k: against their definitions, with intervals that cover."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import group
from trainer import validation
from trainer.types import Group, Outcome, Prompt, Rollout, Verdict


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_mean_over_all_draws_of_k(passed, data):
    k = data.draw(st.integers(1, len(passed)))
    wanted = np.mean([any(draw) for draw in combinations(passed, k)])
    assert validation.pass_at_k(np.array([sum(passed)]), len(passed), k)[0] == pytest.approx(wanted)


def test_names_and_values():
    groups = [group([1, 1, 0, 0]), group([0, 0, 0, 0]), group([1, 0, 0, 0])]
    out = validation.metrics(validation.per_source(groups))
    assert out["val-core/tiny_chains/acc/mean@4"] == pytest.approx(3 / 12)
    assert out["val-core/tiny_chains/acc/pass@4"] == pytest.approx(2 / 3)
    assert out["val-aux/tiny_chains/acc/pass@1"] == pytest.approx(3 / 12)
    assert out["val-aux/tiny_chains/acc/pass@2"] == pytest.approx((5 / 6 + 0 + 1 / 2) / 3)
    assert (
        out["val-aux/tiny_chains/acc/mean@4/ci_low"]
        <= out["val-core/tiny_chains/acc/mean@4"]
        <= out["val-aux/tiny_chains/acc/mean@4/ci_high"]
    )


def test_sources_are_reported_apart():
    other = Prompt("v", "sciknoweval", [{"role": "user", "content": "q"}])
    out = validation.metrics(validation.per_source([group([1, 1]), group([0, 0], prompt=other)]))
    assert out["val-core/tiny_chains/acc/mean@2"] == 1 and out["val-core/sciknoweval/acc/mean@2"] == 0


def verdicts(*answers: tuple[str, bool]) -> Group:
    given_by = [Verdict(Outcome.PASS if right else Outcome.FAIL, float(right), float(right), pred=pred) for pred, right in answers]
    return Group(Prompt("u", "tiny_chains", [{"role": "user", "content": "q"}]), [Rollout("x")] * len(answers), given_by)


def test_majority_shares_ties():
    assert validation._majority(verdicts(("A", True), ("A", True), ("B", False))) == 1
    assert validation._majority(verdicts(("A", True), ("B", False))) == 0.5
    assert validation._majority(verdicts(("", False), ("", False))) == 0
    out = validation.per_source([verdicts(("A", True), ("B", False), ("B", False), ("", False))])
    assert "acc/maj@4" not in out["tiny_chains"]  # an answer without a vote that is not a format error: no majority to speak of


def test_verifier_errors_are_told_and_do_not_vote():
    broken = Verdict(Outcome.ERROR, 0.0, 0.0)
    one = verdicts(("A", True), ("A", True), ("B", False), ("C", False))
    other = Group(one.prompt, one.rollouts, [*one.verdicts[:3], broken])
    out = validation.metrics(validation.per_source([one, other]))
    assert out["val-aux/tiny_chains/outcome/error"] == 1 / 8
    assert out["val-aux/tiny_chains/outcome/pass"] == 1 / 2
    assert out["val-core/tiny_chains/acc/maj@4"] == 1


def test_one_answer_judged_in_two_ways_counts_by_share():
    for answers in ((("A", True), ("A", False)), (("A", False), ("A", True))):
        assert validation._majority(verdicts(*answers)) == 0.5


def test_one_prompt_has_no_interval():
    out = validation.metrics(validation.per_source([group([1, 0])]))
    assert out["val-core/tiny_chains/acc/mean@2"] == 0.5
    assert not [name for name in out if name.endswith("ci_low")]


def test_solve_rate_and_partial_accuracy_are_apart():
    partial = Group(
        Prompt("u", "tiny_chains", [{"role": "user", "content": "q"}]),
        [Rollout("x")] * 2,
        [Verdict(Outcome.FAIL, 0.0, 0.75), Verdict(Outcome.PASS, 1.0, 1.0)],
    )
    out = validation.metrics(validation.per_source([partial]))
    assert out["val-core/tiny_chains/acc/mean@2"] == pytest.approx(0.875)
    assert out["val-aux/tiny_chains/solved/mean@2"] == out["val-aux/tiny_chains/reward/mean@2"] == 0.5


def test_intervals_cover_about_95_of_100():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        interval = validation.estimate(rng.binomial(8, 0.4, 60) / 8)
        inside += interval.low <= 0.4 <= interval.high
    assert 180 <= inside <= 199


def test_estimates_are_the_same_every_time_and_leave_global_randomness_alone():
    values = np.random.default_rng(1).random(30)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    assert validation.estimate(values) == validation.estimate(values)
    assert np.array_equal(before, np.random.get_state()[1])
    assert validation.estimate(np.ones(5)) == validation.Estimate(1, 1, 1)
