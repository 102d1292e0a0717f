"""Who is shown to the teacher: the published vectors, and what must hold for every group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import distill, group
from trainer.peers import PeerContext, select
from trainer.types import Outcome

SCORES = (1, 0, 1, 0, 0, 1, 0, 0)  # behaviour 12.3


def indices(context: PeerContext) -> tuple:
    return tuple(None if peer is None else peer.index for peer in (context.primary, context.another, context.failure))


def first(**changes):
    return distill(peer_order="first", **changes)


def test_published_vector_in_rollout_order():
    contexts = select(group(SCORES), first(), seed=0, step=1)
    assert [context.index for context in contexts] == list(range(8))
    primary_another = {i: indices(context)[:2] for i, context in enumerate(contexts)}
    assert primary_another[0] == (2, 5)
    assert primary_another[1] == (0, 2)
    assert primary_another[2] == (0, 5)
    assert primary_another[5] == (0, 2)


@pytest.mark.parametrize("failure_order", ["shared", "per_member"])
def test_published_vector_of_failures(failure_order):
    drawn = {i: set() for i in range(8)}
    for step in range(60):
        for i, context in enumerate(select(group(SCORES), distill(failure_order=failure_order), seed=0, step=step)):
            drawn[i].add(context.failure.index)
    assert drawn[0] == {1, 3, 4, 6, 7}
    assert drawn[1] == {3, 4, 6, 7}


def test_shared_failures_are_shared_and_members_own_are_not():
    shared = select(group(SCORES), distill(failure_order="shared"), seed=0, step=1)
    own = select(group(SCORES), distill(failure_order="per_member"), seed=0, step=1)
    assert len({context.failure.index for context in shared}) == 2  # the shown failure sees the next one
    assert len({context.failure.index for context in own}) > 2


def test_lone_success():
    scores = [0, 0, 0, 1, 0, 0, 0, 0]
    contexts = select(group(scores), first(), seed=0, step=1)
    assert indices(contexts[3]) == (None, None, 0)  # it sees a failure alone
    assert all(indices(contexts[i])[:2] == (3, None) for i in range(8) if i != 3)
    only_without = select(group(scores), first(failure_solution_condition="when_no_solution"), seed=0, step=1)
    assert [context.failure is not None for context in only_without] == [i == 3 for i in range(8)]


def test_all_fail_shows_failures_and_all_pass_shows_successes():
    for condition in ("always", "when_no_solution"):
        failed = select(group([0, 0, 0]), first(failure_solution_condition=condition), seed=0, step=1)
        assert [indices(context) for context in failed] == [(None, None, 1), (None, None, 0), (None, None, 0)]
    passed = select(group([1, 1, 1]), first(), seed=0, step=1)
    assert [indices(context) for context in passed] == [(1, 2, None), (0, 2, None), (0, 1, None)]


def test_sdpo_shows_one_success_and_a_lone_success_gets_nothing():
    sdpo = first(include_another_solution=False, include_failure_solution=False)
    contexts = select(group([0, 1, 0]), sdpo, seed=0, step=1)
    assert [indices(context) for context in contexts] == [(1, None, None), (None, None, None), (1, None, None)]
    assert [context.empty for context in contexts] == [False, True, False]


def test_another_is_the_second_success_also_when_the_first_is_not_shown():
    contexts = select(group(SCORES), first(include_primary_solution=False), seed=0, step=1)
    assert indices(contexts[1])[:2] == (None, 2)


def test_own_text_only_when_asked_for():
    contexts = select(group([1, 0]), first(dont_reprompt_on_self_success=False), seed=0, step=1)
    assert contexts[0].primary.index == 0


def test_k_successes_and_m_failures_in_general():
    contexts = select(group(SCORES), first(num_success_peers=3, num_failure_peers=2), seed=0, step=1)
    assert [peer.index for peer in contexts[1].successes] == [0, 2, 5]
    assert [peer.role for peer in contexts[1].successes] == ["primary", "another", "another"]
    assert [peer.index for peer in contexts[1].failures] == [3, 4]
    none = select(group(SCORES), first(num_success_peers=0, num_failure_peers=0), seed=0, step=1)
    assert all(context.empty for context in none)


def test_truncated_rollouts_are_no_peers_unless_asked_for_and_then_failures():
    cut = group([1, 0, 0, 1], finished=[False, False, True, True])
    strict = select(cut, first(num_failure_peers=3), seed=0, step=1)
    assert [peer.index for peer in strict[2].peers] == [3]
    assert [peer.index for peer in strict[3].peers] == [2]
    allowed = select(cut, first(num_failure_peers=3, allow_truncated_peers=True), seed=0, step=1)
    assert [peer.index for peer in allowed[3].failures] == [1, 2]  # 0 would be right, but is cut: neither


def test_a_judge_error_is_neither():
    broken = group([0, 0, 1], outcomes=[Outcome.ERROR, Outcome.FAIL, Outcome.PASS])
    contexts = select(broken, first(), seed=0, step=1)
    assert indices(contexts[2]) == (None, None, 1)
    assert indices(contexts[1]) == (2, None, None)


def test_feedback_only_without_a_primary_unless_always():
    told = group([0, 0, 1], feedback=["wrong", " ", "fine"])
    contexts = select(told, first(), seed=0, step=1)
    assert [context.feedback for context in contexts] == [None, None, "fine"]  # 2 has no success peer
    contexts = select(told, first(environment_feedback_only_without_solution=False), seed=0, step=1)
    assert [context.feedback for context in contexts] == ["wrong", None, "fine"]
    contexts = select(told, first(include_primary_solution=False), seed=0, step=1)
    assert contexts[0].feedback == "wrong"
    contexts = select(told, first(include_environment_feedback=False), seed=0, step=1)
    assert all(context.feedback is None for context in contexts)


def test_think_spans_leave_every_peer_unclosed_ones_too():
    thought = group([1, 0, 0], texts=["<think>a\nb</think>c", "<think>never closed", "x"])
    contexts = select(thought, first(remove_thinking_from_demonstration=True, num_failure_peers=2), seed=0, step=1)
    assert contexts[2].primary.text == "c" and contexts[2].failure is None  # nothing of it is left to show
    assert select(thought, first(), seed=0, step=1)[2].primary.text == "<think>a\nb</think>c"


def test_an_empty_response_is_shown_to_nobody():
    silent = group([1, 1, 0, 0], texts=[" \n", "said", "", "wrong"])
    contexts = select(silent, first(), seed=0, step=1)
    assert [indices(context) for context in contexts] == [(1, None, 3), (None, None, 3), (1, None, 3), (1, None, None)]
    assert select(group([0, 0], texts=["", ""]), first(), seed=0, step=1)[0].empty


def test_order_depends_on_seed_step_and_uid_and_nothing_else():
    def drawn(seed=0, step=1, uid="u"):
        return [indices(context) for context in select(group(SCORES, uid=uid), distill(), seed=seed, step=step)]

    assert drawn() == drawn()
    others = [drawn(seed=s) for s in range(1, 6)] + [drawn(step=s) for s in range(2, 7)] + [drawn(uid=f"u{i}") for i in range(5)]
    assert sum(other != drawn() for other in others) > 10


def test_primary_is_not_biased_to_early_rollouts():
    counts = [0] * 8
    for step in range(600):
        counts[select(group(SCORES), distill(), seed=3, step=step)[1].primary.index] += 1
    assert min(counts[0], counts[2], counts[5]) > 150  # 200 each in expectation


@given(
    st.lists(st.tuples(st.sampled_from([0, 1]), st.booleans()), min_size=1, max_size=10),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from(["random", "first"]),
    st.sampled_from(["shared", "per_member"]),
    st.sampled_from(["always", "when_no_solution"]),
    st.booleans(),
)
def test_properties(members, k, m, peer_order, failure_order, condition, allow_truncated):
    settings = distill(
        num_success_peers=k,
        num_failure_peers=m,
        peer_order=peer_order,
        failure_order=failure_order,
        failure_solution_condition=condition,
        allow_truncated_peers=allow_truncated,
    )
    scores, finished = [score for score, _ in members], [done for _, done in members]
    contexts = select(group(scores, finished=finished), settings, seed=1, step=1)
    successes = {i for i in range(len(scores)) if scores[i] and finished[i]}
    failures = {i for i in range(len(scores)) if not scores[i] and (finished[i] or allow_truncated)}
    assert len(contexts) == len(scores)
    for i, context in enumerate(contexts):
        shown = [peer.index for peer in context.peers]
        assert i not in shown and len(set(shown)) == len(shown)  # never itself, nobody twice
        assert {peer.index for peer in context.successes} <= successes
        assert {peer.index for peer in context.failures} <= failures
        assert len(context.successes) == min(k, len(successes - {i}))
        wanted = 0 if condition == "when_no_solution" and successes - {i} else m
        assert len(context.failures) == min(wanted, len(failures - {i}))
