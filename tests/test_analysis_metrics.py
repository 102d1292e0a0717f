"""The commands that measure and draw the teacher's signal, as a user runs them."""

import csv
import hashlib
import json
import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import pyplot
from scipy import stats

from analysis import compute_teacher_signal_metrics as compute
from analysis import plot_teacher_metrics as plots
from analysis.scored import REQUIRED, SETS, read_scored
from analysis.signal import (
    METRICS,
)
from tests.metric_definitions import defined, mean, published, success_auc
from tests.tools import ROOT
from trainer.errors import UserError
from trainer.teacher_signal import teacher_metrics
from trainer.types import Sample

# ---- the commands ----

CONDITIONS = ["base", "solution", "failure_only", "solution+failure_solution", "solution+feedback+summary_all_k2", "own_idea"]


def scored_rows(seed=0, prompts=12):
    """Make scored rows of groups of all kinds: mixed, all-fail, all-pass, alone, with ties, partial rewards, sections missing."""
    rng = random.Random(seed)
    rows = []
    for p in range(prompts):
        n = 1 if p == 3 else rng.randint(2, 8)
        chance = [0.0, 1.0, 0.5, 0.5, 0.3][p % 5]
        passed = [rng.random() < chance for _ in range(n)]
        reward = [1.0 if y else rng.choice([0.0, 0.0, 0.5]) for y in passed]
        for condition in CONDITIONS:
            for i in range(n):
                has = {
                    "solution": sum(passed) - passed[i] > 0,
                    "failure_solution": n - sum(passed) - (not passed[i]) > 0,
                    "summary": p % 3 > 0,
                }
                score = -rng.randint(1, 5) / 4 if p % 2 else -rng.random()
                rows.append(
                    {
                        "variant_id": f"{condition}|{p}|{i}",
                        "target_id": f"p{p}_r{i}",
                        "condition": condition,
                        "target_type": "self_response",
                        "prompt_id": f"p{p}",
                        "response_id": f"p{p}_r{i}",
                        "sections_used": {name: there and p != 2 for name, there in has.items()},
                        "variant_spec": {"include_solution": True},
                        "teacher_score": score,
                        "teacher_prompt_len": rng.randint(50, 90),
                        "teacher_prompt_truncated": rng.random() < 0.2,
                        "reward": reward[i],
                        "success": passed[i],
                        "difficulty_bucket": "easy" if sum(passed) >= 4 else "medium" if any(passed) else "hard",
                    }
                )
    rng.shuffle(rows)
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(tmp_path, rows, *flags, resamples=50):
    """Run the command on rows and return what it wrote."""
    out = tmp_path / "metrics.json"
    source = write(tmp_path / "scored.jsonl", rows)
    assert compute.main(["--input", str(source), "--output", str(out), "--num-bootstrap", str(resamples), *flags]) == 0
    return json.loads(out.read_text())


REQUIRES = {
    "base": (),
    "solution": ("solution",),
    "failure_only": (),
    "solution+failure_solution": ("solution", "failure_solution"),
    "solution+feedback+summary_all_k2": ("solution", "summary"),
    "own_idea": (),
}  # as published (behaviour 8.5)


def published_conditions(rows):
    """Return the published entries of conditions, without intervals."""
    out = {}
    for condition in {row["condition"] for row in rows}:
        groups = {}
        for row in rows:
            if row["condition"] == condition:
                groups.setdefault(row["prompt_id"], []).append(row)
        groups = {prompt: members for prompt, members in groups.items() if len(members) >= 2}
        if groups:
            out[condition] = published_entry(groups) | {
                "by_bucket": {
                    bucket: published_entry({p: m for p, m in groups.items() if m[0]["difficulty_bucket"] == bucket})
                    for bucket in {members[0]["difficulty_bucket"] for members in groups.values()}
                }
            }
    return out


def published_entry(groups):
    measured = [
        published(*([row[name] for row in members] for name in ("teacher_score", "reward", "success"))) for members in groups.values()
    ]
    entry = {name: mean([one[name] for one in measured]) for name in METRICS}
    entry["mean_prompt_length"] = mean([mean([row["teacher_prompt_len"] for row in members]) for members in groups.values()])
    entry["truncation_rate"] = mean([mean([row["teacher_prompt_truncated"] for row in members]) for members in groups.values()])
    return entry | {"count_prompts": len(groups)}


def published_sets(rows):
    """Return the published sample sets."""
    passed, failed = ({row["prompt_id"] for row in rows if row["success"] is verdict} for verdict in (True, False))
    effective = [row for row in rows if all(row["sections_used"].get(name) for name in REQUIRES[row["condition"]])]
    both = passed & failed
    return {
        "all_samples": rows,
        "effective_only": effective,
        "reward_zero_only": [row for row in rows if row["reward"] == 0],
        "reward_zero_effective_only": [row for row in effective if row["reward"] == 0],
        "both_present_all": [row for row in rows if row["prompt_id"] in both],
        "both_present_effective_only": [row for row in effective if row["prompt_id"] in both],
    }, both


def compare(entry, wanted):
    for name, value in wanted.items():
        if name == "by_bucket":
            assert entry[name].keys() == value.keys()
            for bucket, part in value.items():
                compare(entry[name][bucket], part)
        else:
            assert entry[name] == pytest.approx(value, abs=1e-9), name


def test_the_published_convention_is_reproduced(tmp_path):
    rows = scored_rows()
    result = command(tmp_path, rows, "--legacy-degenerate")
    sets, both = published_sets(rows)
    assert result["both_present_prompt_count"] == len(both)
    assert result["condition_sample_counts"] == {name: sum(row["condition"] == name for row in rows) for name in CONDITIONS}
    for name, members in sets.items():
        data, wanted = result["sample_sets"][name], published_conditions(members)
        assert data["conditions"].keys() == wanted.keys()
        for condition, entry in wanted.items():
            compare(data["conditions"][condition], entry)
        common = set.intersection(
            *(
                {
                    p
                    for p in {row["prompt_id"] for row in members}
                    if sum((row["prompt_id"], row["condition"]) == (p, c) for row in members) > 1
                }
                for c in wanted
            )
        )
        paired_type = data["paired_by_target_type"]["self_response"]
        assert paired_type["paired_prompt_count"] == len(common)
        for condition, entry in published_conditions([row for row in members if row["prompt_id"] in common]).items():
            compare(paired_type["conditions"][condition], entry)
    hard = result["sample_sets"]["all_samples"]["conditions"]["base"]["by_bucket"]["hard"]
    assert hard["success_auc"] == 0 and hard["top1_hit_rate"] > 0  # what the published files show of all-fail groups (behaviour 8.5)


def test_groups_that_do_not_define_a_metric_are_left_out_and_counted(tmp_path):
    rows = scored_rows()
    result = command(tmp_path, rows)
    for score in ("teacher", "advantage"):
        base = {row["target_id"]: row["teacher_score"] for row in rows if row["condition"] == "base"}
        data = result["sample_sets"]["all_samples"]
        data = data if score == "teacher" else data["advantage"]
        for condition in CONDITIONS:
            groups = {}
            for row in rows:
                if row["condition"] == condition:
                    groups.setdefault(row["prompt_id"], []).append(row)
            measured = []
            for members in groups.values():
                s = [row["teacher_score"] - (base[row["target_id"]] if score == "advantage" else 0) for row in members]
                if len(s) > 1:
                    measured.append(defined(s, [row["reward"] for row in members], [row["success"] for row in members]))
            entry = data["conditions"][condition]
            assert entry["count_prompts"] == len(measured) == 11  # one prompt has one response
            for name in METRICS:
                values = [one[name] for one in measured if one[name] is not None]
                assert entry[f"{name}_count"] == len(values)
                assert entry[name] == (pytest.approx(mean(values), abs=1e-9) if values else None)
                assert entry[f"{name}_ci"][0] is None or entry[f"{name}_ci"][0] <= entry[name] <= entry[f"{name}_ci"][1]
    assert entry["success_auc_count"] < 11
    assert result["skipped"]["groups of one response"]["count"] == len(CONDITIONS)
    at_base = result["sample_sets"]["all_samples"]["advantage"]["conditions"]["base"]
    assert at_base["success_auc"] == at_base["pairwise_accuracy"] == 0.5 and at_base["mean_spearman"] is None


def test_groups_of_one_prompt_are_resampled_together(tmp_path):
    """Two files (seeds) with the same prompt_ids, and steps of one prompt: means are over prompts, of each over its groups."""
    rows = [row | {"uid": row["prompt_id"]} for row in scored_rows()]
    again = [row | {"teacher_score": row["teacher_score"] + (0.7 if row["success"] else 0)} for row in rows]
    for name, members in (("first", rows), ("second", again)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members))
    files = [str(tmp_path / f"{name}.jsonl") for name in ("first", "second")]
    assert compute.main(["--input", *files, "--output", str(tmp_path / "both.json")]) == 0
    both = json.loads((tmp_path / "both.json").read_text())["sample_sets"]["all_samples"]
    alone = [command(tmp_path, members)["sample_sets"]["all_samples"] for members in (rows, again)]
    for name, entry in both["conditions"].items():
        first, second = (one["conditions"][name] for one in alone)
        assert entry["count_prompts"] == first["count_prompts"] and entry["count_groups"] == 2 * entry["count_prompts"]
        assert entry["success_auc_count"] == first["success_auc_count"]
        assert entry["success_auc"] == pytest.approx((first["success_auc"] + second["success_auc"]) / 2)
    everything = json.loads((tmp_path / "both.json").read_text())
    assert everything["both_present_prompt_count"] == command(tmp_path, rows)["both_present_prompt_count"]
    assert both["paired_by_target_type"]["self_response"]["paired_prompt_count"] <= 12
    difference = next(row for row in both["paired_differences"] if row["metric"] == "success_auc" and row["prompts"])
    assert difference["prompts"] == difference["higher"] + difference["lower"] + difference["equal"] <= 11


def test_the_student_itself_is_the_reference_where_its_scores_are_there(tmp_path):
    rows = scored_rows()
    base = {row["target_id"]: row for row in rows if row["condition"] == "base"}
    student = {name: -random.Random(name).random() for name in base}
    more = [row | {"condition": "student", "variant_id": f"s{name}", "teacher_score": student[name]} for name, row in base.items()]
    result = command(tmp_path, rows + more)
    assert result["student"] == "student" and command(tmp_path, rows)["student"] == "base"
    members = [row for row in base.values() if row["prompt_id"] == "p2"]
    s, y = [row["teacher_score"] - student[row["target_id"]] for row in members], [row["success"] for row in members]
    only = command(tmp_path, [row for row in rows + more if row["prompt_id"] == "p2"])["sample_sets"]["all_samples"]
    assert only["advantage"]["conditions"]["base"]["success_auc"] == pytest.approx(success_auc(s, y), abs=1e-9)
    assert only["advantage"]["conditions"]["student"]["success_auc"] == 0.5
    assert next(iter(only["conditions"])) == "student"
    pairs = {(row["first"], row["second"]) for row in only["paired_differences"]}
    assert ("student", "base") in pairs and ("student", "solution") not in pairs


def test_responses_that_their_context_shows_are_left_out(tmp_path):
    rows = [row | {"target_type": "student_success", "target_in_context": row["target_id"].endswith("_r0")} for row in scored_rows()]
    shown = sum(row["target_in_context"] for row in rows)
    result = command(tmp_path, rows)
    assert result["skipped"]["rows of responses that their context shows to the teacher"]["count"] == shown
    assert sum(result["condition_sample_counts"].values()) == len(rows) - shown
    assert sum(command(tmp_path, rows, "--legacy-degenerate")["condition_sample_counts"].values()) == len(rows)
    own = [row | {"target_type": "self_response"} for row in rows]  # shown its own text on purpose
    assert sum(command(tmp_path, own)["condition_sample_counts"].values()) == len(rows)


def test_mixed_paired_compares_the_same_responses(tmp_path):
    rows = scored_rows(1, prompts=30)
    names = ["base", "solution", "solution+failure_solution"]
    result = command(tmp_path, rows, "--compare", *names)
    by = {(row["condition"], row["target_id"]): row for row in rows}
    common = [
        row
        for row in rows
        if row["condition"] == "base"
        and all(by["solution+failure_solution", row["target_id"]]["sections_used"][name] for name in ("solution", "failure_solution"))
    ]
    mixed = {
        p for p in {row["prompt_id"] for row in common} if {row["success"] for row in common if row["prompt_id"] == p} == {True, False}
    }
    assert len(mixed) > 3
    data = result["sample_sets"]["mixed_paired"]
    assert list(data["conditions"]) == names
    aucs = {}
    for name in names:
        members = {p: [by[name, row["target_id"]] for row in common if row["prompt_id"] == p] for p in mixed}
        aucs[name] = {p: success_auc([r["teacher_score"] for r in m], [r["success"] for r in m]) for p, m in members.items()}
        assert data["conditions"][name]["success_auc_count"] == len(mixed)
        assert data["conditions"][name]["success_auc"] == pytest.approx(mean(list(aucs[name].values())), abs=1e-9)
    found = {
        (row["first"], row["second"]): row
        for row in data["paired_differences"]
        if (row["score"], row["metric"]) == ("teacher", "success_auc")
    }
    assert list(found) == [("base", "solution"), ("base", "solution+failure_solution"), ("solution", "solution+failure_solution")]
    for (first, second), row in found.items():
        differences = [aucs[second][p] - aucs[first][p] for p in mixed]
        assert row["prompts"] == len(mixed) and row["mean_difference"] == pytest.approx(mean(differences), abs=1e-9)
        assert (row["higher"], row["lower"]) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
        n = row["higher"] + row["lower"]
        assert row["sign_test_p"] == pytest.approx(stats.binomtest(row["higher"], n).pvalue)


def test_resamples_and_seed_are_honoured(tmp_path):
    rows = scored_rows(prompts=60)
    few, many = command(tmp_path, rows, resamples=20), command(tmp_path, rows, resamples=2000)
    other = command(tmp_path, rows, "--seed", "7", resamples=2000)

    def interval(result):
        return result["sample_sets"]["all_samples"]["conditions"]["solution"]["success_auc_ci"]

    assert interval(command(tmp_path, rows, resamples=2000)) == interval(many)
    assert interval(few) != interval(many) != interval(other)
    assert interval(other) == pytest.approx(interval(many), abs=0.05)
    aucs = [
        value["success_auc"]
        for group in {row["prompt_id"] for row in rows}
        if (members := [row for row in rows if (row["prompt_id"], row["condition"]) == (group, "solution")])
        and (value := defined(*([row[name] for row in members] for name in ("teacher_score", "reward", "success"))))["success_auc"]
        is not None
    ]
    theirs = stats.bootstrap((aucs,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert interval(many) == pytest.approx([theirs.low, theirs.high], abs=0.15 * (theirs.high - theirs.low))


def test_tables_say_what_the_json_says(tmp_path, capsys):
    result = command(tmp_path, scored_rows())
    data = result["sample_sets"]["both_present_effective_only"]
    rows = list(csv.DictReader((tmp_path / "metrics_table7.csv").open()))
    assert list(rows[0])[:5] == ["condition", "count_prompts", "mean_spearman", "mean_spearman_ci_low", "mean_spearman_ci_high"]
    order = [name for name in REQUIRED if name in data["conditions"]]
    assert [row["condition"] for row in rows] == [*order, "own_idea"]
    for row in rows:
        entry = data["conditions"][row["condition"]]
        assert float(row["success_auc"]) == entry["success_auc"] and int(row["success_auc_count"]) == entry["success_auc_count"]
        assert [float(row[f"success_auc_ci_{end}"]) for end in ("low", "high")] == entry["success_auc_ci"]
        assert row["advantage_success_auc"] == str(data["advantage"]["conditions"][row["condition"]]["success_auc"])
    table = (tmp_path / "metrics_table7.md").read_text()
    assert "| condition | count_prompts | mean_spearman | mean_kendall_tau | pairwise_accuracy | success_auc |" in table
    shown = re.search(r"^\| solution \| (\d+) \|.*\| ([\d.]+) \[[^|]*\((\d+)\) \|$", table, re.MULTILINE)
    assert shown.groups() == (
        str(data["conditions"]["solution"]["count_prompts"]),
        f"{data['conditions']['solution']['success_auc']:.3f}",
        str(data["conditions"]["solution"]["success_auc_count"]),
    )
    assert len(list(csv.DictReader((tmp_path / "metrics_table7_paired.csv").open()))) == len(data["paired_differences"])
    assert "groups of one response" in capsys.readouterr().out
    command(tmp_path, scored_rows(), "--table-output", str(tmp_path / "t.md"), "--table-sample-set", "all_samples")
    assert (tmp_path / "t.md").read_text().startswith("Sample set `all_samples`")
    assert (tmp_path / "t.csv").exists()


def test_nothing_written_takes_the_place_of_anything(tmp_path, capsys):
    source = write(tmp_path / "s.jsonl", scored_rows())
    for arguments in (["--output", str(source)], ["--output", str(tmp_path / "m.csv"), "--table-output", str(tmp_path / "m.md")]):
        assert compute.main(["--input", str(source), *arguments]) == 2
        assert "is named twice among --input, --output and the tables" in capsys.readouterr().err
    assert compute.main(["--input", str(source), "--output", str(tmp_path / "m.json"), "--num-bootstrap", "9"]) == 0
    (tmp_path / "plots" / "teacher_metrics_main.svg" / "in the way").mkdir(parents=True)
    assert plots.main(["--input", str(tmp_path / "m.json"), "--output-dir", str(tmp_path / "plots")]) == 2
    assert "teacher_metrics_main.svg" in capsys.readouterr().err
    assert not list((tmp_path / "plots").glob("*.partial"))


def test_what_training_showed_counts_where_it_showed_anything(tmp_path):
    used = dict.fromkeys(("solution", "another_solution", "failure_solution", "feedback", "summary"), False)
    rows = [row | {"condition": "training", "sections_used": used} for row in scored_rows() if row["condition"] == "base"]
    rows += [row for row in scored_rows() if row["condition"] == "base"]
    assert "training" not in command(tmp_path, rows)["sample_sets"]["effective_only"]["conditions"]
    for row in rows:
        if row["condition"] == "training":
            row["sections_used"] = used | {"failure_solution": True}
    shown = command(tmp_path, rows)["sample_sets"]
    assert shown["effective_only"]["conditions"]["training"] == shown["all_samples"]["conditions"]["training"]


@pytest.mark.parametrize(
    ("name", "needs"), [("random_peer", "solution"), ("verifier_score_ordered", "solution"), ("another_solution", "another_solution")]
)
def test_controls_count_where_they_show_what_they_stand_for(tmp_path, name, needs):
    base = [row for row in scored_rows() if row["condition"] == "base"]
    nothing = dict.fromkeys(("solution", "another_solution", "failure_solution", "feedback", "summary"), False)
    for shown, there in ((nothing, False), (nothing | {needs: True}, True)):
        rows = [*base, *(row | {"condition": name, "sections_used": shown} for row in base)]
        assert (name in command(tmp_path, rows)["sample_sets"]["effective_only"]["conditions"]) is there


# ---- bad input ----


def edited(**changes):
    """Return rows of which the seventh is changed; a change to ... takes the field out."""
    rows = scored_rows()
    rows[6] = {name: value for name, value in (rows[6] | changes).items() if value is not ...}
    return rows


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teacher_score": ...}, r"scored\.jsonl:7: has no field 'teacher_score'"),
        ({"success": ...}, r"scored\.jsonl:7: has no field 'success'"),
        ({"teacher_score": "high"}, r"scored\.jsonl:7: field 'teacher_score' is 'high'"),
        ({"success": 2}, r"scored\.jsonl:7: field 'success' is 2, which is neither true nor false"),
        ({"reward": math.nan}, r"scored\.jsonl:7: field 'reward' is nan"),
        ({"sections_used": ...}, r"scored\.jsonl:7: lacks the field 'sections_used'.*two schemas"),
        ({"prompt_id": 7}, r"scored\.jsonl:7: field 'prompt_id' is 7"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, capsys, changes, says):
    path = write(tmp_path / "scored.jsonl", edited(**changes))
    with pytest.raises(UserError, match=says):
        read_scored([path])
    assert compute.main(["--input", str(path), "--output", str(tmp_path / "out.json")]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out.json").exists()


def test_other_wrong_files_are_refused(tmp_path):
    rows = scored_rows()
    path = write(tmp_path / "scored.jsonl", rows)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(UserError, match=rf"scored\.jsonl:{len(rows)}: the last line is cut off"):
        read_scored([path])
    write(path, [*rows, rows[0] | {"teacher_score": 3.0}])
    with pytest.raises(UserError, match=rf"scored\.jsonl:{len(rows) + 1}: .* scored again under .*two scorings"):
        read_scored([path])
    write(path, [row | {"teacher_score": None} for row in rows])
    with pytest.raises(UserError, match="no row has a finite teacher_score"):
        read_scored([path])
    write(path, rows)
    for flags, says in (
        (["--compare", "nonsense"], "nonsense not in"),
        (["--num-bootstrap", "0"], "must be 1 or more"),
        (["--table-output", str(tmp_path / "t.csv")], "give a Markdown file"),
    ):
        options = ["--input", str(path), "--output", str(tmp_path / "out.json"), *flags]
        assert compute.main(options) == 2, says


def test_what_is_skipped_is_counted_and_said(tmp_path, capsys):
    rows = scored_rows()
    rows[4]["teacher_score"], rows[9]["teacher_score"], rows[11]["reward"] = math.nan, None, None
    rows[11]["success"] = rows[4]["success"]
    rows.append(dict(rows[0]))
    result = command(tmp_path, rows)
    assert result["skipped"]["rows without a finite teacher_score"] == {"count": 2, "first": f"{tmp_path}/scored.jsonl:5"}
    assert result["skipped"]["rows that repeat an earlier one"] == {"count": 1, "first": f"{tmp_path}/scored.jsonl:{len(rows)}"}
    assert result["skipped"]["null rewards (the verdict, 1 or 0, was taken)"]["count"] == 1
    assert sum(result["condition_sample_counts"].values()) == len(rows) - 3
    said = capsys.readouterr().out
    assert "2 rows without a finite teacher_score (first: " in said and "scored.jsonl:5" in said


def test_no_success_anywhere_is_said_and_nothing_is_made_up(tmp_path, capsys):
    rows = [row | {"success": False, "reward": 0.0} for row in scored_rows() if row["condition"] != "base"]
    result = command(tmp_path, rows)
    said = capsys.readouterr().out
    assert "no response is a success" in said and "no condition 'base' or 'student'" in said and "mixed_paired is empty" in said
    for data in result["sample_sets"].values():
        assert "advantage" not in data
        for entry in data["conditions"].values():
            assert entry["success_auc"] is entry["top1_hit_rate"] is entry["mean_spearman"] is None
            assert entry["success_auc_count"] == 0 and entry["success_brier_sigmoid"] is not None
    figure = plots.main_figure(result["sample_sets"]["all_samples"]["conditions"], "nothing")
    undefined = [sum("not defined" in text.get_text() for text in axes.texts) for axes in figure.axes]
    assert undefined == [len(CONDITIONS) - 1] * 5 + [0]  # all but the Brier score
    plots.pyplot.close(figure)


# ---- figures ----


def test_figures_show_what_the_metrics_say(tmp_path, capsys):
    result = command(tmp_path, scored_rows())
    flags = ["--input", str(tmp_path / "metrics.json"), "--output-dir", str(tmp_path / "plots")]
    assert plots.main([*flags, "--sample-set", "all_samples", "--conditions", *CONDITIONS[:4]]) == 0
    for name in ("teacher_metrics_main", "teacher_metrics_by_bucket", "teacher_paired_differences"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "plots" / f"{name}.svg").read_text().startswith("<?xml")
    entry = result["sample_sets"]["all_samples"]["conditions"]["failure_only"]
    assert entry["success_auc_count"] < entry["count_prompts"]
    svg = (tmp_path / "plots" / "teacher_metrics_main.svg").read_text()
    assert f"{entry['success_auc']:.2f} ({entry['success_auc_count']})" in svg
    assert (
        all((f">{name}<" in svg) == (name in CONDITIONS[:4]) for name in CONDITIONS) and "all_samples" in svg and "lower is better" in svg
    )
    differences = (tmp_path / "plots" / "teacher_paired_differences.svg").read_text()
    assert "minus base" in differences and "minus solution<" in differences and "advantage" in differences
    for data in result["sample_sets"].values():
        for entry in [*data["paired_by_target_type"].values(), *data["advantage"]["paired_by_target_type"].values()]:
            entry["conditions"] = {name: {**values, "by_bucket": {}} for name, values in entry["conditions"].items()}
    (tmp_path / "metrics.json").write_text(json.dumps(result))
    drawn = []
    for _ in range(2):
        assert (
            plots.main([*flags, "--score", "advantage", "--paired-target-type", "self_response", "--conditions", "base", "solution"]) == 0
        )
        drawn.append((tmp_path / "plots" / "teacher_metrics_main.svg").read_text())
    assert drawn[0] == drawn[1]
    assert "no difficulty buckets" in capsys.readouterr().out
    assert ">solution<" in drawn[0] and ">failure_only<" not in drawn[0] and "self_response on common prompts" in drawn[0]
    for bad, says in (
        (["--conditions", "nonsense"], "nonsense not in this sample set"),
        (["--paired-target-type", "strong_success"], "it has self_response"),
    ):
        capsys.readouterr()
        assert plots.main([*flags, *bad]) == 2
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("metric", "origin"), [("success_auc", 0.5), ("mean_spearman", 0.0), ("success_brier_sigmoid", 0.0)])
def test_bars_begin_where_a_score_knows_nothing(metric, origin):
    axes = pyplot.figure().subplots()
    entries = {
        name: {metric: value, f"{metric}_ci": [value - 0.1, value + 0.1], "count_prompts": 3}
        for name, value in (("base", 0.3), ("solution", 0.9))
    }
    plots.draw_bars(axes, entries, metric)
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches] == [pytest.approx((origin, v)) for v in (0.3, 0.9)]
    pyplot.close(axes.figure)


def test_a_published_metrics_file_is_drawn(tmp_path):
    entry = {"count_prompts": 5} | dict.fromkeys(METRICS, 0.4) | {f"{name}_ci": [0.3, 0.5] for name in METRICS}
    conditions = {name: entry | {"by_bucket": {}} for name in REQUIRED}
    sets = {"all_samples": {"description": "", "conditions": conditions, "paired_by_target_type": {}}}
    (tmp_path / "theirs.json").write_text(json.dumps({"input": "x", "sample_sets": sets}))
    assert plots.main(["--input", str(tmp_path / "theirs.json"), "--output-dir", str(tmp_path)]) == 0
    svg = (tmp_path / "teacher_metrics_main.svg").read_text()
    assert all((f">{name}<" in svg) == (name in plots.MAIN) for name in REQUIRED)
    assert not (tmp_path / "teacher_paired_differences.svg").exists()
    for text in ("{", "[]", json.dumps({"sample_sets": {}})):
        (tmp_path / "theirs.json").write_text(text)
        assert plots.main(["--input", str(tmp_path / "theirs.json"), "--output-dir", str(tmp_path)]) == 2


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_kinds_differ_by_colour_and_hatch_and_scores_by_colour_and_marker():
    assert len({colour for colour, _ in plots.KINDS.values()}) == len(plots.KINDS)
    hatches = [hatch for _, hatch in plots.KINDS.values() if hatch]
    assert len(set(hatches)) == len(hatches)
    plain = [colour for colour, hatch in plots.KINDS.values() if not hatch]
    assert contrast(*plain) > 1.5  # the two without a hatch are told apart in grey
    assert len({marker for _, marker, _ in plots.SCORES.values()}) == 2


# ---- on real responses ----


def hashed_score(*key):
    """Return a made-up score in (-2, 0) that is the same every time."""
    return -2 * int(hashlib.sha1("|".join(key).encode()).hexdigest()[:8], 16) / 2**32


def test_the_commands_on_the_real_sample(tmp_path, shared_data):
    sample = shared_data / "rollouts_sample"
    lengths = {row["response_id"]: len(row["response_text"]) for row in map(json.loads, (sample / "candidate_responses.jsonl").open())}
    rows = [
        {
            name: row[name]
            for name in ("variant_id", "condition", "prompt_id", "response_id", "sections_used", "variant_spec", "reward", "success")
        }
        | {"target_id": row["response_id"], "target_type": "self_response", "difficulty_bucket": row["difficulty_bucket"]}
        | {"teacher_score": hashed_score(row["condition"], row["response_id"]), "teacher_response_len": lengths[row["response_id"]]}
        | {"teacher_prompt_len": len(row["assembled_context_text"]), "teacher_prompt_truncated": False}
        for row in map(json.loads, (sample / "context_variants.jsonl").open())
    ]
    write(tmp_path / "scored.jsonl", rows)
    script = str(ROOT / "analysis" / "compute_teacher_signal_metrics.py")
    flags = ["--input", "scored.jsonl", "--output", "metrics.json", "--num-bootstrap", "100"]
    done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["condition_sample_counts"] == dict.fromkeys({row["condition"] for row in rows}, 12)
    assert result["both_present_prompt_count"] == 1
    sets = result["sample_sets"]
    assert list(sets) == list(SETS)
    everything = sets["all_samples"]["conditions"]
    assert all(entry["count_prompts"] == 3 and entry["success_auc_count"] == 1 for entry in everything.values())
    mixed = [row for row in rows if row["prompt_id"] == "b1113c7f05e8b58f" and row["condition"] == "solution"]
    wanted = success_auc([row["teacher_score"] for row in mixed], [row["success"] for row in mixed])
    assert everything["solution"]["success_auc"] == pytest.approx(wanted, abs=1e-9)
    # the lone success sees no success: of the mixed prompt the effective set keeps failures alone, and defines no AUC
    solution = sets["both_present_effective_only"]["conditions"]["solution"]
    assert solution["count_prompts"] == 1 and solution["success_auc"] is None and solution["success_auc_count"] == 0
    assert "mixed_paired is empty" in done.stdout
    flags = ["--input", str(tmp_path / "metrics.json"), "--output-dir", str(tmp_path / "plots"), "--conditions", "base", "solution"]
    done = subprocess.run(
        [sys.executable, "-m", "analysis.plot_teacher_metrics", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}


@pytest.mark.parametrize("how", [["-m", "analysis.compute_teacher_signal_metrics"], [str(ROOT / "analysis" / "plot_teacher_metrics.py")]])
def test_the_other_way_to_start_them(how):
    done = subprocess.run(
        [sys.executable, *how, "--help"], cwd=ROOT if how[0] == "-m" else "/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--input" in done.stdout, done.stderr


def test_what_a_training_step_says_of_its_teacher():
    def sample(group: int, passed: bool) -> Sample:
        none = np.zeros(0, np.int32)
        return Sample(f"u{group}", group, 0, none, none, np.zeros(0, np.float32), passed=passed)

    samples = [sample(0, True), sample(0, False), sample(1, False), sample(1, False), sample(2, True), sample(2, False)]
    gaps = {0: [0.5, 0.1], 1: [-0.2, -0.2], 2: [1.0], 4: [-0.4], 5: [0.2]}  # the third was not distilled, group 1 is all-fail
    got = teacher_metrics(samples, {i: {"teacher_gap": np.array(gap, np.float32)} for i, gap in gaps.items()})
    assert got["teacher/auc"] == 0.5 and got["teacher/auc_groups"] == 2
    assert got["teacher/kl_passed"] == pytest.approx(-0.2 / 3) and got["teacher/kl_failed"] == pytest.approx(-0.8 / 4)
    assert got["teacher/kl_first_token"] == pytest.approx((-0.5 + 0.2 - 1.0 + 0.4 - 0.2) / 5)
    assert "teacher/auc" not in teacher_metrics(samples, {2: {"teacher_gap": np.array([1.0])}})
    assert teacher_metrics(samples, {0: {"student_logp": np.zeros(2)}}) == {}
