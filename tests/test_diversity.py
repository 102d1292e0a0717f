"""Diversity: every measure against its definition, both kinds of input, comparisons, plots, and the commands as typed."""

import contextlib
import csv
import difflib
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image, rc_context
from sacrebleu.metrics.bleu import BLEU
from scipy import stats

from analysis import prepare_rollout_dataset
from analysis.rows import read_jsonl
from diversity import compute_metrics, measures, plot_metrics, summary
from diversity.runs import files_of, numeric, read_run, select
from tests.tools import ROOT, group, write_chains
from trainer.dumps import write_rollouts
from trainer.errors import UserError
from trainer.files import write_jsonl
from trainer.models import load_chat
from trainer.types import Outcome, Prompt
from trainer.validation import estimate

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=5)
PROGRAMS = st.lists(
    st.sampled_from(["x = 1", "x = 1\ny = 2", "print(f(1))", "def f(a):\n    return a", "for i in a:\n    f(i)", "", "pass", "a = [b]"]),
    max_size=5,
)


def test_tokens_are_identifiers_digits_and_single_other_characters():
    assert measures.tokenize("foo_1 += 42*x3;\n ('a b')") == ["foo_1", "+", "=", "42", "*", "x3", ";", "(", "'", "a", "b", "'", ")"]
    assert measures.tokenize(" \n\t") == []


def grams(text: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


@given(TEXTS)
def test_ngrams_stay_within_their_text(texts):
    for n, found in enumerate(measures.ngrams(texts, 4), 1):
        counts = [Counter(grams(text, n)) for text in texts]
        assert sorted(zip(found.text.tolist(), found.count.tolist(), strict=True)) == sorted(
            (i, count) for i, text in enumerate(counts) for count in text.values()
        )
        elsewhere = [
            (i, max((other[g] for j, other in enumerate(counts) if j != i), default=0)) for i, text in enumerate(counts) for g in text
        ]
        assert sorted(zip(found.text.tolist(), found.most_elsewhere().tolist(), strict=True)) == sorted(elsewhere)


@given(TEXTS)
def test_self_bleu_is_sacrebleus_sentence_score_against_all_others(texts):
    said = [" ".join(text) for text in texts if text]
    bleu = BLEU(tokenize="none", effective_order=True, smooth_method="exp")
    scores = [bleu.sentence_score(text, said[:i] + said[i + 1 :]).score / 100 for i, text in enumerate(said) if len(said) > 1]
    found = measures.self_bleu(texts)
    assert found is None if len(said) < 2 else found == pytest.approx(np.mean(scores), abs=1e-12)


@given(TEXTS, st.integers(1, 3))
def test_distinct(texts, n):
    every = [gram for text in texts for gram in grams(text, n)]
    assert measures.distinct(texts, n) == (len(set(every)) / len(every) if every and len(texts) > 1 else None)


@given(TEXTS)
def test_distinct_over_the_concatenation_differs_by_the_joints_alone(texts):
    """The published definition has n-grams that run from one text into the next: at most one less than there are texts."""
    joined, apart = [t for text in texts for t in text], [g for text in texts for g in grams(text, 2)]
    assert 0 <= len(grams(joined, 2)) - len(apart) <= max(len(joined) - 1, 0)
    if all(len(text) > 1 for text in texts) and texts:
        assert len(grams(joined, 2)) - len(apart) == len(texts) - 1


def lcs(a: list[str], b: list[str]) -> int:
    rows = [[0] * (len(b) + 1)]
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(rows[-1][j] + 1 if x == y else max(row[-1], rows[-1][j + 1]))
        rows.append(row)
    return rows[-1][-1]


@given(TEXTS)
def test_pairwise_distance_is_the_normalised_indel_distance(texts):
    distances = [1 - 2 * lcs(a, b) / (len(a) + len(b)) if a or b else 0.0 for a, b in itertools.combinations(texts, 2)]
    found = measures.pairwise_distance(texts)
    assert found is None if len(texts) < 2 else found == pytest.approx(np.mean(distances), abs=1e-12)


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40))
def test_pairwise_distance_is_never_above_the_published_kind(a, b):
    """difflib's matching blocks are a common subsequence, not always the longest."""
    published = 1 - difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    assert measures.pairwise_distance([a, b]) <= published + 1e-12


def test_long_texts_of_the_same_letters_are_not_maximally_distant():
    """Where difflib takes every frequent character for junk, texts of more than 200 characters share nothing."""
    rng = np.random.default_rng(0)
    a = [str(word) for word in rng.choice(list("abcdefgh"), 3000)]
    b = [word if rng.random() < 0.9 else "x" for word in a]
    assert difflib.SequenceMatcher(None, "".join(a), "".join(b)).ratio() < 0.1
    assert measures.pairwise_distance([a, b]) < 0.15


@given(PROGRAMS)
def test_ast_distance(programs):
    counts = [measures.node_counts(program) for program in programs]
    distances = []
    for a, b in itertools.combinations(counts, 2):
        names = {*a, *b}
        distances.append(1 - sum(min(a[n], b[n]) for n in names) / sum(max(a[n], b[n]) for n in names))
    found = measures.ast_distance(counts)
    assert found is None if len(programs) < 2 else found == pytest.approx(np.mean(distances), abs=1e-12)


def test_node_counts_are_of_node_types():
    assert measures.node_counts("x = 1\ny = 2") == Counter(Module=1, Assign=2, Name=2, Store=2, Constant=2)
    assert measures.node_counts("not python (") is None
    assert measures.node_counts("(" * 5000 + ")" * 5000) is None


@given(TEXTS, st.randoms())
def test_the_order_of_texts_does_not_matter(texts, random):
    shuffled = random.sample(texts, len(texts))
    for measure in (measures.self_bleu, measures.pairwise_distance, lambda texts: measures.distinct(texts, 2)):
        one, other = measure(texts), measure(shuffled)
        assert (one is None) == (other is None)
        assert one is None or one == pytest.approx(other, abs=1e-12)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(2, 5))
def test_copies_have_no_diversity(text, n):
    copies = [" ".join(text)] * n
    found = compute_metrics.diversity(copies, "generic")
    assert found["self_bleu4"] == pytest.approx(1) and found["pairwise_text_distance"] == 0
    assert found["unique_response_ratio"] == 1 / n


FEWER = {"self_bleu4", "pairwise_text_distance", "distinct1", "distinct2", "unique_response_ratio"}


@pytest.mark.parametrize("texts", [[], ["alone"]])
def test_fewer_than_two_texts_have_no_diversity_to_measure(texts):
    assert compute_metrics.diversity(texts, "generic") == dict.fromkeys(FEWER)


def test_uniqueness_looks_through_blanks_but_not_through_indentation():
    assert measures.normalised_text(" a  b\n\nc ") == "a b c"
    inside = "for i in a:\n    f(i)\n    g(i)\n"
    assert measures.normalised_code(inside) == measures.normalised_code(inside.replace("\n", " \n\n"))
    assert measures.normalised_code(inside) != measures.normalised_code(inside.replace("    g", "g"))


def fenced(program: str, before: str = "") -> str:
    return f"{before}\n```python\n{program}\n```\n"


def test_code_is_measured_as_the_verifier_reads_it():
    usage = "```\n12 34\n```\n" * 3
    texts = [fenced("print(1)", "First."), fenced("print(1)", "Quite another way to say it.") + usage, "no program", fenced("print((")]
    found = compute_metrics.diversity(texts, "code")
    assert found["unique_response_ratio"] == 1  # of responses: all differ
    assert found["unique_code_ratio"] == 2 / 3  # of programs: two are the same
    assert found["without_program_ratio"] == 1 / 4 and found["unparsable_program_ratio"] == 1 / 3
    assert found["ast_node_jaccard_distance"] == 0
    programs = ["print(1)", "print(1)", "print(("]
    assert found["pairwise_text_distance"] == measures.pairwise_distance([measures.tokenize(program) for program in programs])
    alone = compute_metrics.diversity(["no program", "none here either"], "code")
    assert alone["unique_code_ratio"] is None and alone["self_bleu4"] is None and alone["without_program_ratio"] == 1


# ---- reading ------------------------------------------------------------------------------------------------------------


def candidate(prompt_id: str, index: int, *, reward: float = 0.0, text: str | None = None, **more) -> dict:
    text = f"answer {index}" if text is None else text
    return {"prompt_id": prompt_id, "response_id": f"{prompt_id}_r{index}", "response_text": text, "reward": reward, **more}


def write(path: Path, rows: list[dict]) -> Path:
    write_jsonl(path, rows)
    return path


def rows_of(path: Path, **options) -> list[dict]:
    run = select([read_run("a", path)], least=options.pop("least", 1), **options)[0]
    return [compute_metrics.measure("a", found, "generic", [1, 2, 4]) for found in run.groups.values()]


@pytest.mark.parametrize("passed", range(6))
def test_pass_at_k_is_the_share_of_subsets_with_a_success(tmp_path, passed):
    rows = [candidate("p", i, reward=float(i < passed)) for i in range(5)]
    (found,) = rows_of(write(tmp_path / "a.jsonl", rows))
    for k in (1, 2, 4):
        subsets = list(itertools.combinations(range(5), k))
        assert found[f"pass@{k}"] == pytest.approx(np.mean([any(i < passed for i in subset) for subset in subsets]))
    assert found["success_count"] == passed and found["success_rate"] == passed / 5 == found["mean_reward"]
    assert (found["success_self_bleu4"] is None) == (passed < 2)


def test_pass_at_k_is_undefined_where_there_are_fewer_responses(tmp_path):
    (found,) = rows_of(write(tmp_path / "a.jsonl", [candidate("p", i, reward=1.0) for i in range(3)]))
    assert found["pass@2"] == 1 and found["pass@4"] is None


def test_our_dumps_and_candidates_made_of_them_are_the_same_groups(tmp_path, random_model):
    chat = load_chat(str(random_model), {})
    asked = [Prompt(f"u{i}", "tiny_chains", [{"role": "user", "content": "1+2"}], token_ids=chat.encode("1+2=")) for i in range(2)]
    scores, outcomes = [[1, 0, 1], [0, 0, 1]], [[Outcome.PASS, Outcome.FAIL, Outcome.PASS], [Outcome.ERROR, Outcome.FAIL, Outcome.PASS]]
    groups = [
        group(score, texts=["1+2=3", "1+2=4", "Answer: 3"], outcomes=outcome, uid=prompt.uid, prompt=prompt)
        for score, outcome, prompt in zip(scores, outcomes, asked, strict=True)
    ]
    write_rollouts(tmp_path / "val" / "40.jsonl", groups, chat, 40)
    assert prepare_rollout_dataset.main(["--input", str(tmp_path / "val"), "--output-dir", str(tmp_path / "made")]) == 0
    dumped, prepared = rows_of(tmp_path / "val"), rows_of(tmp_path / "made")
    same = [name for name in dumped[0] if name != "difficulty_bucket"]
    assert [{name: row[name] for name in same} for row in dumped] == [{name: row[name] for name in same} for row in prepared]
    assert [row["prompt_id"] for row in dumped] == ["u0", "u1"]  # the same question twice, by two names
    assert [row["n_rollouts"] for row in dumped] == [3, 2]  # what could not be judged is left out
    assert read_run("a", tmp_path / "val").left_out == {"responses the verifier could not judge": 1}


def test_published_dumps_are_grouped_by_their_text(tmp_path):
    rows = [{"input": f"q{i % 2}", "output": f"o{i}", "score": float(i == 0), "step": 3} for i in range(4)]
    found = read_run("a", write(tmp_path / "3.jsonl", rows)).groups
    assert {len(found.responses) for found in found.values()} == {2}
    assert set(found) == {hashlib.sha1(text).hexdigest()[:16] for text in (b"q0", b"q1")}  # the prompt_id of published candidates


def test_response_ids_are_ordered_by_number_before_the_cap(tmp_path):
    assert sorted(["r10", "r2", "r1", "a"], key=numeric) == ["a", "r1", "r2", "r10"]
    rows = [candidate("p", i) for i in reversed(range(12))]
    (run,) = select([read_run("a", write(tmp_path / "a.jsonl", rows))], least=2, most=3)
    assert [response.id for response in run.groups["p"].responses] == ["p_r0", "p_r1", "p_r2"]
    assert run.left_out["responses over --max-responses-per-prompt"] == 9


def test_caps_come_after_the_intersection(tmp_path):
    """The first two prompts of each run have nothing in common, but the runs do."""
    names = {"a": ["p0", "p1", "p8", "p9"], "b": ["p2", "p3", "p8", "p9"]}
    runs = [
        read_run(name, write(tmp_path / f"{name}.jsonl", [candidate(p, i) for p in ps for i in range(2)])) for name, ps in names.items()
    ]
    first, second = select(runs, least=2, intersect=True, max_prompts=2)
    assert list(first.groups) == list(second.groups) == ["p8", "p9"]
    assert +first.left_out == {"prompts that not all runs have": 2}
    assert list(select(runs, least=2, max_prompts=2)[0].groups) == ["p0", "p1"]
    with pytest.raises(UserError, match=r"no prompt is in all runs \(a has p0, c has x\)"):
        select([runs[0], read_run("c", write(tmp_path / "c.jsonl", [candidate("x", i) for i in range(2)]))], least=2, intersect=True)


def test_prompts_with_one_response_are_left_out_and_counted(tmp_path):
    rows = [candidate("p", 0), candidate("p", 1), candidate("lonely", 0)]
    (run,) = select([read_run("a", write(tmp_path / "a.jsonl", rows))], least=2)
    assert list(run.groups) == ["p"] and +run.left_out == {"prompts with fewer than 2 responses": 1}
    with pytest.raises(UserError, match="none of its 1 prompts has 2 responses or more"):
        select([read_run("a", write(tmp_path / "b.jsonl", rows[2:]))], least=2)


def test_a_group_is_of_one_step(tmp_path):
    steps = [5, 5, 10, 10, 10, 2, 10, 5]
    rows = [candidate("p", i, rollout_step=step) for i, step in enumerate(steps)]
    path = write(tmp_path / "a.jsonl", rows)
    run = read_run("a", path)
    assert [response.id for response in run.groups["p"].responses] == ["p_r2", "p_r3", "p_r4", "p_r6"] and run.groups["p"].step == 10
    assert run.left_out == {"responses of earlier steps": 4}
    assert len(read_run("a", path, mix_steps=True).groups["p"].responses) == 8
    dumps = [
        {"uid": "p", "input": "q", "output": f"{step} {i}", "score": 0, "step": step, "rollout_index": i}
        for step in (9, 10)
        for i in (0, 1)
    ]
    for step in (9, 10):
        write(tmp_path / "dumps" / f"{step}.jsonl", [row for row in dumps if row["step"] == step])
    assert [response.text for response in read_run("a", tmp_path / "dumps").groups["p"].responses] == ["10 0", "10 1"]
    assert len(read_run("a", tmp_path / "dumps", mix_steps=True).groups["p"].responses) == 4


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path):
    for name in ("2.jsonl", "10.jsonl"):
        write(tmp_path / name, [])
    assert [file.name for file in files_of(tmp_path)] == ["2.jsonl", "10.jsonl"]
    write(tmp_path / "candidate_responses.jsonl", [])
    assert [file.name for file in files_of(tmp_path)] == ["candidate_responses.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        files_of(tmp_path / "empty")


GOOD = candidate("p", 0)
BAD = {
    "neither kind": ({"text": "x"}, r"a.jsonl:2: is neither a candidate .* nor a dumped rollout"),
    "mixed kinds": ({"input": "q", "output": "o", "score": 1.0}, r"a.jsonl:2: is a dumped rollout .*a.jsonl:1 is a candidate"),
    "missing field": ({k: v for k, v in candidate("p", 1).items() if k != "response_id"}, r"a.jsonl:2: has no field 'response_id'"),
    "no reward": ({k: v for k, v in candidate("p", 1).items() if k != "reward"}, r"a.jsonl:2: has neither 'reward' nor 'score'"),
    "reward no number": (candidate("p", 1, reward="1"), r"a.jsonl:2: field 'reward' is '1'"),
    "reward not finite": (candidate("p", 1, reward=math.nan), r"a.jsonl:2: field 'reward' is nan"),
    "success no truth value": (candidate("p", 1, success="yes"), r"a.jsonl:2: field 'success' is 'yes'"),
    "the same response twice": (candidate("p", 0), r"a.jsonl:2: response p_r0 of prompt p is there twice, first at .*a.jsonl:1"),
    "some with a step": (candidate("p", 1, rollout_step=3), r"a.jsonl:2: of prompt p only some responses name their step"),
    "two groups": (candidate("p-2", 1, uid="p"), r"a.jsonl:2: prompt p has a second group \(p-2\) of the same step"),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_run("a", write(tmp_path / "a.jsonl", [GOOD, row]))


def test_a_cut_line_is_named_by_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD, candidate("p", 1)])
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"a.jsonl:2: "):
        read_run("a", path)


# ---- comparing ----------------------------------------------------------------------------------------------------------


def test_a_correlation_and_its_interval():
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    y = 0.6 * x + rng.normal(size=80)
    found = summary.correlation(x, y)
    assert found.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    wanted = stats.bootstrap(
        (x, y), lambda x, y: stats.pearsonr(x, y).statistic, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=rng
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.04)
    assert summary.correlation(x, y) == found  # seeded
    assert summary.correlation(x, np.ones(80)) is None and summary.correlation(x[:2], y[:2]) is None
    few = summary.correlation(x[:5], y[:5])
    assert few.value == pytest.approx(stats.pearsonr(x[:5], y[:5]).statistic) and few.low is None
    lone = summary.correlation(x, (np.arange(80) == 3).astype(float))
    assert lone.value is not None and lone.low is None  # in a third of the resamples the one prompt is not there


def prompt_row(method: str, prompt: str, **values) -> dict:
    return {"method": method, "prompt_id": prompt, "difficulty_bucket": None, "step": None, **values}


VALUES = st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.floats(0, 1)), st.one_of(st.none(), st.floats(0, 1))), max_size=12)


@given(VALUES)
def test_paired_differences_are_over_common_prompts_with_both_defined(triples):
    first = {f"p{i}": a for i, a, _ in triples} | {"only a": 0.5}
    second = {f"p{i}": b for i, _, b in triples} | {"only b": 0.5}
    runs = {name: [prompt_row(name, p, m=v) for p, v in values.items()] for name, values in (("a", first), ("b", second))}
    (found,) = summary.paired_differences(runs)
    differences = [second[p] - first[p] for p in first if p in second and None not in (first[p], second[p])]
    assert (found["metric"], found["method"], found["minus"], found["count"]) == ("m", "b", "a", len(differences))
    assert found["mean_difference"] == (pytest.approx(np.mean(differences)) if differences else None)
    if len(differences) > 1:
        assert found["ci"][0] - 1e-12 <= found["mean_difference"] <= found["ci"][1] + 1e-12


def test_means_leave_out_what_is_undefined_and_count_it():
    values = [0.5, None, 0.7, None, 0.9]
    rows = [
        prompt_row("a", f"p{i}", **{"pairwise_text_distance": v, "success_pairwise_text_distance": None, "pass@1": 1.0})
        for i, v in enumerate(values)
    ]
    found = summary.summarise(rows, 1)
    kept = estimate(np.array([0.5, 0.7, 0.9]))
    name = "pairwise_text_distance"
    assert found["prompt_count"] == 5 and found[f"{name}_count"] == 3
    assert found[f"{name}_mean"] == pytest.approx(0.7) and found[f"{name}_ci"] == [kept.low, kept.high]
    assert found[f"{name}_std"] == pytest.approx(np.std([0.5, 0.7, 0.9]))
    assert found[f"success_{name}_mean"] is None and found[f"success_{name}_count"] == 0
    assert found[f"corr_{name}_vs_pass@1"] is None and found[f"corr_{name}_vs_pass@1_count"] == 3


def test_case_studies_are_the_widest_gaps_first():
    gaps = {"p0": (0.5, 0.9), "p1": (0.9, 0.1), "p2": (None, 0.3), "p3": (0.4, 0.4)}
    runs = {
        name: [prompt_row(name, p, **{"pairwise_text_distance": v[i], "pass@1": 0.1 * i, "pass@4": 0.5 * i}) for p, v in gaps.items()]
        for i, name in enumerate("ab")
    }
    found = summary.case_studies(runs, 4, 2)
    assert [case["prompt_id"] for case in found] == ["p1", "p0"]
    assert found[0]["diversity_gap"] == pytest.approx(0.8) and (found[0]["high_method"], found[0]["low_method"]) == ("a", "b")
    assert (found[0]["high_diversity"], found[0]["low_diversity"]) == (0.9, 0.1)
    assert found[0]["high_pass"] == found[0]["high_pass@4"] == 0 and found[0]["low_pass"] == found[0]["low_pass@4"] == 0.5
    assert len(summary.case_studies(runs, None, 9)) == 3


def test_the_k_of_comparisons_is_one_that_every_prompt_has():
    rows = [{"pass@1": 1.0, "pass@4": 1.0, "pass@8": 1.0}, {"pass@1": 0.0, "pass@4": 0.0, "pass@8": None}]
    assert summary.common_k(rows, [1, 4, 8]) == 4 and summary.common_k(rows, [8]) is None


# ---- the commands -------------------------------------------------------------------------------------------------------


def write_runs(folder: Path) -> dict[str, Path]:
    """Write two runs of programs on prompts of which most are common; the second is the more diverse and the less right."""
    rng = np.random.default_rng(0)
    paths = {}
    for name, prompts, words, right in (("first", range(14), 3, 0.8), ("second", range(2, 16), 9, 0.5)):
        rows = []
        for p in prompts:
            for i in range(8):
                program = "\n".join(f"x{rng.integers(words)} = {rng.integers(words)}" for _ in range(4))
                rows.append(candidate(f"p{p}", i, reward=float(rng.random() < right), text=fenced(program, "So:"), prompt=f"question {p}"))
        paths[name] = write(folder / f"{name}.jsonl", rows)
    return paths


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """The results of two runs, as the command writes and says them."""
    folder = tmp_path_factory.mktemp("two runs")
    paths = write_runs(folder)
    names = {"first": "_ba$e", "second": "MO$D [v2]"}
    named = [f"--run={names[name]}={path}" for name, path in paths.items()]
    with (folder / "said").open("w") as file, contextlib.redirect_stdout(file):
        assert compute_metrics.main([*named, "--task", "code", "--intersect-prompts", f"--output-dir={folder / 'out'}"]) == 0
    return folder


def test_two_runs_are_compared(two_runs):
    said, found = (two_runs / "said").read_text(), json.loads((two_runs / "out" / "summary.json").read_text())
    assert "_ba$e (12)" in said and "MO$D [v2] (12)" in said and "MO$D [v2] - _ba$e" in said
    assert "_ba$e: left out 2 prompts that not all runs have" in said
    assert [row["method"] for row in found["summary"]] == ["_ba$e", "MO$D [v2]"]
    rows = [row for _, row in read_jsonl(two_runs / "out" / "per_prompt.jsonl")]
    assert len(rows) == 24 and {row["n_rollouts"] for row in rows} == {8}
    for row in found["summary"]:
        own = [r for r in rows if r["method"] == row["method"]]
        for name in ("self_bleu4", "distinct2", "unique_code_ratio", "ast_node_jaccard_distance", "pass@8", "success_distinct1"):
            values = [r[name] for r in own if r[name] is not None]
            assert row[f"{name}_mean"] == pytest.approx(np.mean(values)) and row[f"{name}_count"] == len(values)
            assert row[f"{name}_ci"][0] <= row[f"{name}_mean"] <= row[f"{name}_ci"][1]
    (difference,) = (row for row in found["paired"] if row["metric"] == "self_bleu4")
    assert difference["count"] == 12 and difference["ci"][1] < 0  # the second is more diverse, and it shows
    with (two_runs / "out" / "summary.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["pass@1_mean"]) for row in table] == [row["pass@1_mean"] for row in found["summary"]]
    assert [float(row["pass@1_ci_low"]) for row in table] == [row["pass@1_ci"][0] for row in found["summary"]]
    with (two_runs / "out" / "paired.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found["paired"])
    cases = [row for _, row in read_jsonl(two_runs / "out" / "case_studies.jsonl")]
    assert len(cases) == 12 and cases[0]["prompt"].startswith("question")
    assert [case["diversity_gap"] for case in cases] == sorted((case["diversity_gap"] for case in cases), reverse=True)
    assert found["config"]["k"] == 8 and "high_pass@8" in cases[0]


def test_the_same_files_give_the_same_results(two_runs, tmp_path):
    paths = [f"--run={name}={two_runs / file}" for name, file in (("_ba$e", "first.jsonl"), ("MO$D [v2]", "second.jsonl"))]
    assert compute_metrics.main([*paths, "--task=code", "--intersect-prompts", f"--output-dir={tmp_path}"]) == 0
    for file in (two_runs / "out").glob("*.*"):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_plots_are_drawn_with_the_users_names(two_runs, tmp_path, capsys):
    files = ["--summary", str(two_runs / "out" / "summary.json"), "--per-prompt", str(two_runs / "out" / "per_prompt.jsonl")]
    assert plot_metrics.main([*files, "--output-dir", str(tmp_path), "--scatter-k", "4"]) == 0
    names = ["diversity_vs_passk", "method_diversity_bars", "passk_curve", "success_diversity_vs_passk"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    for name in names:
        picture = image.imread(tmp_path / f"{name}.png")
        assert picture[..., :3].std() > 0.02 and "</svg>" in (tmp_path / f"{name}.svg").read_text()
    assert str(tmp_path / "passk_curve.png") in capsys.readouterr().out
    rows = plot_metrics.read_summary(two_runs / "out" / "summary.json")
    (legend,) = (axes.get_legend() for axes in plot_metrics.passk_curve(rows).axes)
    assert [text.get_text().lstrip("\u200b").replace(r"\$", "$") for text in legend.get_texts()] == ["_ba$e", "MO$D [v2]"]
    assert len(plot_metrics.method_diversity_bars(rows).axes) == 6
    assert plot_metrics.main([*files, "--output-dir", str(tmp_path), "--scatter-k", "5"]) == 2
    assert "--scatter-k 5: per-prompt rows have pass@k for k = 1, 2, 4, 8" in capsys.readouterr().err


def test_many_runs_look_different():
    looks = [(str(look["color"]), look["marker"]) for look in map(plot_metrics.style, range(10))]
    assert len(set(looks)) == 10


def test_a_published_summary_without_intervals_is_drawn(tmp_path):
    rows = {"MOPD_V2": {"prompt_count": 3, "pass@1_mean": 0.5, "pass@8_mean": 0.75, "success_distinct2_mean": 0.4}}
    (tmp_path / "summary.json").write_text(json.dumps({"config": {}, "summary": rows}))
    written = write(
        tmp_path / "per.jsonl",
        [{"method": "MOPD_V2", "pairwise_text_distance": 0.1 * i, "success_pairwise_text_distance": None, "pass@8": 0.5} for i in range(3)],
    )
    summary_rows, rows = plot_metrics.read_summary(tmp_path / "summary.json"), plot_metrics.read_per_prompt(written)
    k = plot_metrics.chosen_k(rows, None)
    figures = [
        plot_metrics.passk_curve(summary_rows),
        plot_metrics.method_diversity_bars(summary_rows),
        plot_metrics.diversity_vs_passk(rows, "pairwise_text_distance", k),
        plot_metrics.diversity_vs_passk(rows, "success_pairwise_text_distance", k),
    ]
    assert k == 8
    for figure, said in zip(figures, ["MOPD_V2", "distinct-2", "MOPD_V2: r undefined, 3 prompts", "MOPD_V2 (undefined)"], strict=True):
        drawn = io.StringIO()
        with rc_context({"svg.fonttype": "none"}):
            figure.savefig(drawn, format="svg")
        assert said in drawn.getvalue()


@pytest.mark.parametrize("content", ["{", "[]", '{"summary": []}', '{"summary": [{"name": 1}]}'])
def test_what_is_no_summary_is_said(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json"):
        plot_metrics.read_summary(tmp_path / "summary.json")


def test_the_real_sample(shared_data, tmp_path, capsys):
    """Twelve responses of a Qwen3-4B to three prompts, and the same again as the second run."""
    sample = shared_data / "rollouts_sample" / "candidate_responses.jsonl"
    assert compute_metrics.main(["--run", f"Qwen={sample}", "--run", f"again={sample}", "--output-dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "Only 3 prompts" in said and "undefined" in said
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    row = found["summary"][0]
    assert row["prompt_count"] == 3 and row["pass@1_mean"] == pytest.approx(5 / 12) and row["pass@4_mean"] == pytest.approx(2 / 3)
    assert row["pass@8_mean"] is None and row["pass@8_count"] == 0 and found["config"]["k"] == 4
    assert row["success_pairwise_text_distance_count"] == 1  # four, one and no success
    texts = [row["response_text"] for _, row in read_jsonl(sample) if row["prompt_id"] == "6ef0d0b3bf7fc9be"]
    rows = {row["prompt_id"]: row for _, row in read_jsonl(tmp_path / "out" / "per_prompt.jsonl")}
    tokens = [measures.tokenize(text) for text in texts]
    distances = [1 - 2 * lcs(a, b) / (len(a) + len(b)) for a, b in itertools.combinations([text[:300] for text in tokens], 2)]
    assert measures.pairwise_distance([text[:300] for text in tokens]) == pytest.approx(np.mean(distances))
    bleu = BLEU(tokenize="none", effective_order=True)
    said = [" ".join(text) for text in tokens]
    scores = [bleu.sentence_score(text, said[:i] + said[i + 1 :]).score / 100 for i, text in enumerate(said)]
    assert rows["6ef0d0b3bf7fc9be"]["self_bleu4"] == pytest.approx(np.mean(scores))
    assert rows["6ef0d0b3bf7fc9be"]["difficulty_bucket"] == "easy" and rows["6ef0d0b3bf7fc9be"]["step"] == 5
    assert all(row["mean_difference"] == 0 for row in found["paired"] if row["count"])


WRONG = {
    "no path": (["--run", "a"], "--run a: must be NAME=PATH"),
    "one name twice": (["--run", "a={good}", "--run", "a={good}"], "a names two runs"),
    "no such file": (["--run", "a=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    "k of 0": (["--run", "a={good}", "--ks", "0"], "--ks"),
    "a cap below the least": (["--run", "a={good}", "--max-responses-per-prompt", "1"], "is below --min-responses-per-prompt 2"),
    "another file of the analysis": (["--run", "a={other}"], "is neither a candidate"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys, arguments, message):
    good = write(tmp_path / "good.jsonl", [candidate("p", i) for i in range(3)])
    other = write(tmp_path / "evidence_items.jsonl", [{"evidence_id": "x", "text": "y"}])
    arguments = [argument.format(good=good, other=other) for argument in arguments]
    assert compute_metrics.main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


ENV = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "HOME": os.environ["HOME"],
    "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
}


def shell(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "diversity" / "run_diversity.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env={**ENV, **env})


def test_the_study_as_the_readme_runs_it(tmp_path):
    write_runs(tmp_path)
    files = {"SDPO_CANDIDATES": "first.jsonl", "MOPD_CANDIDATES": str(tmp_path / "second.jsonl")}
    done = shell("--run", "a third=first.jsonl", "--max-prompts", "5", cwd=tmp_path, OUTPUT_DIR="study", GENERATE_SDPO="0", **files)
    assert done.returncode == 0, done.stderr
    assert "base is left out" in done.stderr and "SDPO (5)" in done.stdout and "a third (5)" in done.stdout
    assert (tmp_path / "study" / "summary.csv").is_file() and len(list((tmp_path / "study" / "plots").iterdir())) == 8
    assert json.loads((tmp_path / "study" / "summary.json").read_text())["config"]["task"] == "code"


def test_what_the_study_cannot_do_it_says(tmp_path):
    missing = shell(cwd=tmp_path, BASE_CANDIDATES="nowhere.jsonl")
    assert missing.returncode == 2 and "base: nowhere.jsonl is not there" in missing.stderr
    without = shell(cwd=tmp_path, GENERATE_SDPO="1")
    assert without.returncode == 2 and "GENERATE_SDPO=1 needs CKPT_PATH" in without.stderr
    usage = shell("--help", cwd=tmp_path)
    assert usage.returncode == 0 and "SDPO_CANDIDATES=FILE" in usage.stdout and "ROLLOUT_INPUT_DIR" in usage.stdout


@pytest.mark.slow
def test_the_study_generates_its_own_run(tmp_path, guessing_model):
    """A checkpoint is sampled, its dumps are prepared, and what comes out is what the evaluation said."""
    write_chains(tmp_path / "data", train=4, test=4)
    sizes = {
        "ROLLOUT_PROMPT_LENGTH": "32",
        "ROLLOUT_RESPONSE_LENGTH": "16",
        "EVAL_N": "4",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_MODE": "disabled",
    }
    paths = {"CKPT_PATH": str(guessing_model), "DATA_PATH": "data", "VALIDATION_DATA_DIR": "val", "OUTPUT_DIR": "study"}
    done = shell("--task", "generic", cwd=tmp_path, GENERATE_SDPO="1", SDPO_CANDIDATES="made/candidate_responses.jsonl", **paths, **sizes)
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stderr.splitlines() if line.startswith("+ ")]
    assert [Path(word).name for line in commands for word in line.split() if word.endswith((".sh", ".py"))] == [
        "run_eval_sdpo.sh",
        "prepare_rollout_dataset.py",
        "compute_metrics.py",
        "plot_metrics.py",
    ]
    (row,) = json.loads((tmp_path / "study" / "summary.json").read_text())["summary"]
    ((_, logged),) = read_jsonl(tmp_path / "study" / "logs" / "metrics.jsonl")
    assert row["prompt_count"] == 4 and row["pass@4_mean"] == pytest.approx(logged["val-core/tiny_chains/acc/pass@4"])
    assert row["pass@1_mean"] == pytest.approx(logged["val-core/tiny_chains/acc/mean@4"])
