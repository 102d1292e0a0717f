"""How a batch is cut up: every active sample once, within the budget, the same number of passes for every rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import config, forest
from trainer.batching import make_plan
from trainer.config.schema import ActorConfig
from trainer.types import Batch, Sample


def actor(**changes) -> ActorConfig:
    settings = config.load(
        "sdpo", [f"actor_rollout_ref.actor.{key}={value}" for key, value in changes.items() if key != "ppo_mini_batch_size"]
    )
    settings.actor_rollout_ref.actor.ppo_mini_batch_size = changes.get("ppo_mini_batch_size", 32)
    return settings.actor_rollout_ref.actor


BASE = actor()


def sample(group: int, index: int, prompt: int, response: int, context: int | None, active: bool = True) -> Sample:
    def ids(length):
        return np.full(length, group, np.int32)

    return Sample(
        "u",
        group,
        index,
        ids(prompt),
        ids(response),
        np.zeros(response, np.float32),
        None if context is None else ids(context),
        active=active,
    )


samples = st.lists(
    st.lists(st.tuples(st.integers(1, 30), st.one_of(st.none(), st.integers(1, 60)), st.booleans()), min_size=1, max_size=6),
    min_size=1,
    max_size=6,
)


@given(samples, st.integers(1, 4), st.sampled_from([1, 2, 3, 6]), st.integers(100, 400), st.one_of(st.none(), st.integers(1, 5)))
def test_every_active_sample_once_within_the_budget(groups, ranks, mini, budget, most):
    settings = type(BASE)(
        **{**vars(BASE), "ppo_mini_batch_size": mini, "ppo_max_token_len_per_gpu": budget, "ppo_micro_batch_size_per_gpu": most}
    )
    batch = Batch(
        [
            sample(g, i, 5 + g, response, context, active)
            for g, members in enumerate(groups)
            for i, (response, context, active) in enumerate(members)
        ]
    )
    plan = make_plan(batch, len(groups), settings, world_size=ranks, max_response_length=30)
    trained = []
    for step in plan.mini_batches:
        assert len(step.ranks) == ranks
        assert len({len(micros) for micros in step.ranks}) == 1  # FSDP ranks run the same passes
        mine = [i for micros in step.ranks for micro in micros for i in micro]
        trained += mine
        assert len({batch.samples[i].group // mini for i in mine}) == 1
        for micros in step.ranks:
            for micro in micros:
                assert most is None or len(micro) <= most
                for side in ("prompt_ids", "context_ids"):
                    sequences = [
                        (getattr(batch.samples[i], side), batch.samples[i].response_ids)
                        for i in micro
                        if getattr(batch.samples[i], side) is not None
                    ]
                    assert not sequences or forest.token_count(sequences) <= budget
    assert sorted(trained) == [i for i, s in enumerate(batch.samples) if s.active]
    # token-mean: weights of a mini-batch's tokens sum to 1, inactive samples included
    for first in range(0, len(groups), mini):
        members = [i for i, s in enumerate(batch.samples) if first <= s.group < first + mini]
        assert sum(plan.weights[i] * len(batch.samples[i].response_ids) for i in members) == pytest.approx(1.0)


def test_ranks_are_balanced_by_tokens_and_groups_stay_together():
    batch = Batch([sample(g, i, 20, 30, 50) for g in range(8) for i in range(8)])
    plan = make_plan(batch, 8, BASE, world_size=4, max_response_length=30)
    by_rank = [{batch.samples[i].group for micro in micros for i in micro} for micros in plan.mini_batches[0].ranks]
    assert sorted(map(len, by_rank)) == [2, 2, 2, 2] and len(set.union(*by_rank)) == 8


def test_uneven_groups_are_balanced_too():
    rng = np.random.default_rng(0)
    batch = Batch([sample(g, i, 20, int(rng.integers(1, 400)), 50) for g in range(6) for i in range(8)])
    roomy = type(BASE)(**{**vars(BASE), "ppo_max_token_len_per_gpu": 100_000})
    plan = make_plan(batch, 6, roomy, world_size=4, max_response_length=400)
    loads = [sum(len(batch.samples[i].response_ids) for micro in micros for i in micro) for micros in plan.mini_batches[0].ranks]
    assert max(loads) <= 1.15 * np.mean(loads)


def test_one_group_is_split_when_there_are_more_ranks():
    batch = Batch([sample(0, i, 5, 30, 5) for i in range(8)])
    plan = make_plan(batch, 1, BASE, world_size=2, max_response_length=30)
    assert [sum(map(len, micros)) for micros in plan.mini_batches[0].ranks] == [4, 4]


def test_nothing_active_is_no_step():
    assert make_plan(Batch([sample(0, 0, 5, 5, None, active=False)]), 1, BASE, world_size=2, max_response_length=30).mini_batches == ()
    assert make_plan(Batch([]), 1, BASE, world_size=2, max_response_length=30).mini_batches == ()


def test_a_sample_beyond_the_budget_is_named():
    settings = type(BASE)(**{**vars(BASE), "ppo_max_token_len_per_gpu": 40})
    with pytest.raises(ValueError, match=r"rollout 3 of prompt 'u'.*ppo_max_token_len_per_gpu=40"):
        make_plan(Batch([sample(0, 3, 20, 30, None)]), 1, settings, world_size=1, max_response_length=30)
