"""The metrics of the teacher's signal against their definitions, and what is said over prompts against scipy."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.signal import METRICS, Bootstrap, group_metrics, paired
from tests.metric_definitions import defined, mean, published, success_auc
from tests.tools import ROOT
from trainer.teacher_signal import auc, auc_by_group, first_token_kl, kl_by_position, kl_by_verdict, response_means

TIED = st.integers(-6, 0).map(lambda i: i / 4)  # few values: many ties
SCORE = TIED | st.floats(-20, 0).map(lambda x: round(x, 6))
ROW = st.tuples(SCORE, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans())
GROUPS = st.lists(st.lists(ROW, min_size=1, max_size=7), min_size=1, max_size=6)


def columns(groups):
    rows = [(*row, g) for g, group in enumerate(groups) for row in group]
    random.Random(len(rows)).shuffle(rows)
    within = {g: [row[:3] for row in rows if row[3] == g] for g in range(len(groups))}  # in file order, which legacy ties obey
    return [np.array(column) for column in zip(*rows, strict=True)], within


@pytest.mark.parametrize(("legacy", "definition"), [(True, published), (False, defined)])
@given(groups=GROUPS)
def test_every_metric_of_every_group_is_its_definition(legacy, definition, groups):
    (scores, rewards, success, group), within = columns(groups)
    measured = group_metrics(scores, rewards, success, group, legacy=legacy)
    assert set(measured) == set(METRICS)
    for g, rows in within.items():
        s, r, y = map(list, zip(*rows, strict=True))
        wanted = definition(s, r, y) if len(rows) > 1 else dict.fromkeys(METRICS)
        for name in METRICS:
            if wanted[name] is None:
                assert math.isnan(measured[name][g]), name
            else:
                assert measured[name][g] == pytest.approx(wanted[name], abs=1e-9), name


@given(rows=st.lists(ROW, min_size=2, max_size=9))
def test_metrics_are_those_of_scipy(rows):
    s, r, y = map(np.array, zip(*rows, strict=True))
    measured = {name: values[0] for name, values in group_metrics(s, r, y, np.zeros(len(s), int)).items()}
    if np.ptp(s) and np.ptp(r):
        assert measured["mean_spearman"] == pytest.approx(stats.spearmanr(s, r).statistic, abs=1e-9)
        assert measured["mean_kendall_tau"] == pytest.approx(stats.kendalltau(s, r).statistic, abs=1e-9)
    if y.any() and not y.all():
        u = stats.mannwhitneyu(s[y], s[~y], method="asymptotic").statistic / (y.sum() * (~y).sum())
        assert measured["success_auc"] == pytest.approx(u, abs=1e-9)
        assert auc(s, y) == pytest.approx(u, abs=1e-9)
        if np.ptp(s):
            assert measured["success_point_biserial"] == pytest.approx(stats.pointbiserialr(y, s).statistic, abs=1e-9)


def test_large_groups_are_measured_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    s, r = rng.normal(size=240).round(1), rng.choice([0.0, 0.5, 1.0], 240)
    whole = group_metrics(s, r, r == 1, np.arange(240) // 8)
    monkeypatch.setattr("analysis.signal.CELLS", 100)
    parts = group_metrics(s, r, r == 1, np.arange(240) // 8)
    assert all(np.array_equal(whole[name], parts[name], equal_nan=True) for name in METRICS)


def test_scores_that_are_not_finite_are_refused_and_never_a_tie():
    with pytest.raises(ValueError, match="finite"):
        group_metrics(np.array([0.0, np.nan]), np.array([0.0, 1.0]), np.array([False, True]), np.zeros(2, int))
    assert math.isnan(auc([0.0, np.nan], [False, True]))


# ---- for training ----


@given(rows=st.lists(st.tuples(SCORE, st.booleans(), st.sampled_from("abc")), max_size=12))
def test_auc_pooled_and_by_group(rows):
    s, y, g = ([row[i] for row in rows] for i in range(3))
    pooled = success_auc(s, y)
    assert auc(s, y) == pytest.approx(math.nan if pooled is None else pooled, abs=1e-12, nan_ok=True)
    names = sorted(set(g))
    wanted = [success_auc(*zip(*[(a, b) for a, b, c in rows if c == name], strict=True)) for name in names]
    assert auc_by_group(s, y, g) == pytest.approx([math.nan if value is None else value for value in wanted], abs=1e-12, nan_ok=True)


@given(kl=st.lists(st.lists(st.floats(0, 5), max_size=9), max_size=6), bins=st.integers(1, 5), data=st.data())
def test_kl_by_verdict_by_position_and_of_the_first_token(kl, bins, data):
    success = data.draw(st.lists(st.booleans(), min_size=len(kl), max_size=len(kl)))
    arrays = [np.array(tokens, np.float32) for tokens in kl]

    def average(values):
        return pytest.approx(mean(values) if values else math.nan, rel=1e-5, nan_ok=True)

    by_verdict = kl_by_verdict(arrays, success)
    for name, wanted in (("passed", True), ("failed", False)):
        assert by_verdict[name] == average([x for tokens, passed in zip(kl, success, strict=True) if passed == wanted for x in tokens])
    parts = kl_by_position(arrays, bins)
    assert len(parts) == bins
    for b in range(bins):
        assert parts[b] == average([x for tokens in kl for j, x in enumerate(tokens) if math.floor(j * bins / len(tokens)) == b])
    assert first_token_kl(arrays) == average([tokens[0] for tokens in kl if tokens])
    means = response_means(arrays)
    assert [math.isnan(value) for value in means] == [not tokens for tokens in kl]
    assert all(value == average(tokens) for value, tokens in zip(means, kl, strict=True))


def test_training_does_not_wait_for_scipy():
    code = "import sys, trainer.teacher_signal; print([name for name in sys.modules if name.startswith(('scipy', 'matplotlib'))])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


# ---- over prompts ----


def test_bootstrap_intervals_are_those_of_scipy_and_do_not_depend_on_what_else_is_asked():
    rng = np.random.default_rng(1)
    values = [rng.beta(2, 1, 60), rng.normal(size=60), rng.choice([0.0, 0.5, 1.0], 90)]
    together, alone = Bootstrap(4000, 5), [Bootstrap(4000, 5) for _ in values]
    asked = [together.ask(column) for column in values]
    again = together.ask(values[0].copy())
    single = [bootstrap.ask(column) for bootstrap, column in zip(alone, values, strict=True)]
    for bootstrap in (together, *alone):
        bootstrap.fill()
    assert again == asked[0]
    assert np.array(asked) == pytest.approx(np.array(single), abs=1e-12)
    for column, (low, high) in zip(values, asked, strict=True):
        theirs = stats.bootstrap(
            (column,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(9)
        ).confidence_interval
        width = theirs.high - theirs.low
        assert abs(low - theirs.low) < 0.08 * width and abs(high - theirs.high) < 0.08 * width


def test_bootstrap_in_parts_constant_columns_and_columns_of_one_prompt(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    bounds = []
    for cells in (2**22, 50 * 7):
        monkeypatch.setattr("analysis.signal.CELLS", cells)
        bootstrap = Bootstrap(500, 3)
        asked, constant, one, none = (bootstrap.ask(column) for column in (values, np.full(9, 0.25), np.ones(1), np.ones(0)))
        bootstrap.fill()
        assert constant == pytest.approx([0.25, 0.25])
        assert one == none == [None, None]
        bounds.append(asked)
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-12)


@given(first=st.lists(st.none() | TIED, min_size=1, max_size=12), data=st.data())
def test_paired_differences_and_their_sign_test(first, data):
    second = data.draw(st.lists(st.none() | TIED, min_size=len(first), max_size=len(first)))
    difference = paired(*(np.array(column, np.float64) for column in (first, second)), Bootstrap(10, 0))
    common = [b - a for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    assert difference.prompts == len(common)
    assert difference.mean == (pytest.approx(mean(common)) if common else None)
    counts = [sum(d > 0 for d in common), sum(d < 0 for d in common), sum(d == 0 for d in common)]
    assert [difference.higher, difference.lower, difference.equal] == counts
    n = counts[0] + counts[1]
    tail = sum(math.comb(n, k) for k in range(min(counts[:2]) + 1)) / 2**n
    assert difference.p == (pytest.approx(min(1, 2 * tail)) if n else None)


def test_rounding_is_no_difference():
    """The same responses in another order have the same metrics, and no sign test counts their last bits."""
    rng = np.random.default_rng(0)
    scores, success = rng.normal(size=(60, 8)), rng.random((60, 8)) < 0.5
    order = rng.permuted(np.tile(np.arange(8), (60, 1)), axis=1)
    groups = np.repeat(np.arange(60), 8)
    first, second = (
        group_metrics(s.ravel(), y.ravel().astype(float), y.ravel(), groups)
        for s, y in ((scores, success), (np.take_along_axis(scores, order, 1), np.take_along_axis(success, order, 1)))
    )
    for name in METRICS:
        difference = paired(first[name], second[name], Bootstrap(10, 0))
        assert difference.equal == difference.prompts > 50 and difference.p is None
