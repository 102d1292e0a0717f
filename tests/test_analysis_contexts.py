"""From dumps to the contexts a teacher is shown: real groups, the trainer's own selection and frame, the published files."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import build_context_variants, build_target_responses, conditions, prepare_rollout_dataset
from analysis.groups import Candidates, unflatten
from analysis.rows import read_jsonl as read_checked
from tests.analysis_data import group, line, published_dumps, rollout, sample, write_lines
from tests.tools import ROOT, distill, in_process, overrides
from trainer import config, peers
from trainer.errors import UserError
from trainer.files import read_jsonl, write_jsonl
from trainer.models import load_chat

DISTILL = "actor_rollout_ref.actor.self_distillation"


def prepare(out: Path, *arguments) -> list[dict]:
    assert prepare_rollout_dataset.main([*map(str, arguments), "--output-dir", str(out)]) == 0
    return read_jsonl(out / "candidate_responses.jsonl")


def build(out: Path, candidates: Path, *arguments) -> list[dict]:
    assert build_context_variants.main(["--candidates", str(candidates), "--output", str(out), *map(str, arguments)]) == 0
    return read_jsonl(out)


def of(rows: list[dict], condition: str) -> list[dict]:
    return [row for row in rows if row["condition"] == condition]


# ---- reading ----


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": 2', r"x\.jsonl:2: the last line is cut off"),
        ('{"a": 1}\n{"a": \n{"a": 3}\n', r"x\.jsonl:2: is not JSON"),
        ('{"a": 1}\n[1]\n', r"x\.jsonl:2: holds an array where an object is needed"),
        ('{"a": 1}\n\n{"b": 1}\n', r"x\.jsonl:3: has no field 'a' \(it has b\)"),
        ('{"a": true}\n', r"x\.jsonl:1: field 'a' is True, which is not float"),
        ('{"a": NaN}\n', r"x\.jsonl:1: field 'a' is nan, which is not float"),
        ("", r"x\.jsonl: holds no row"),
        ('{"a": 1, "b": "\\ud800"}\n', r"x\.jsonl:1: holds half of a surrogate pair"),
        ('{"a": 1' + "0" * 400 + "}\n", r"x\.jsonl:1: field 'a' is 10+, which is not float"),
        ('{"a": 1, "b": ' + "[" * 100_000 + "]" * 100_000 + "}\n", r"x\.jsonl:1: is nested too deeply"),
    ],
)
def test_bad_lines_are_named_by_file_and_line(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_checked(tmp_path / "x.jsonl", {"a": float}))


def test_what_is_no_utf8_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: is not UTF-8"):
        list(read_checked(tmp_path / "x.jsonl"))


# ---- prepare ----


def test_candidates_and_evidence_of_the_published_sample(shared_data, tmp_path):
    dumps = published_dumps(shared_data, tmp_path / "dumps")
    made = {row["response_text"]: row for row in prepare(tmp_path / "out", "--input", dumps)}
    names, wanted = {}, sample(shared_data, "candidate_responses")
    for row in wanted:
        ours = made[row["response_text"]]
        names[row["response_id"]] = ours["response_id"]
        differ = {name for name, value in row.items() if ours[name] != value}
        assert differ <= {"response_id", "source_line"}  # four of eight rollouts, whose lines were others
    evidence = {row["evidence_id"]: row for row in read_jsonl(tmp_path / "out" / "evidence_items.jsonl")}
    assert len(evidence) == 24
    for row in sample(shared_data, "evidence_items"):
        response, _, kind = row["evidence_id"].partition("::")
        ours = evidence[f"{names[response]}::{kind}"]
        assert {name for name, value in row.items() if ours[name] != value} <= {"evidence_id", "source_response_id", "source_line"}
        assert list(ours) == list(row)
    for row in wanted:  # byte for byte from the published candidates themselves
        again = prepare_rollout_dataset.evidence(row)
        assert again == [item for item in sample(shared_data, "evidence_items") if item["source_response_id"] == row["response_id"]]


def test_groups_of_ours_are_those_of_one_step_of_one_run(tmp_path):
    for run in ("a", "b"):
        for step in (2, 10):
            write_jsonl(tmp_path / run / f"{step}.jsonl", [*group("u", step, [1, 0]), *group("v", step, [0, 0, 0])])
    rows = prepare(tmp_path / "out", "--input", tmp_path)
    assert Counter(row["prompt_id"] for row in rows) == {
        name: size for uid, size in (("u", 2), ("v", 3)) for name in (f"{uid}_s2", f"{uid}_s10", f"{uid}_s2-2", f"{uid}_s10-2")
    }
    assert [row["rollout_step"] for row in rows if row["uid"] == "u"] == [2, 2, 10, 10] * 2  # numeric order
    assert rows[0]["response_id"] == "u_s2_r0" and rows[0]["source_file"] == "a/2.jsonl" and rows[0]["source_line"] == 1
    assert all(row["prompt_success_count"] == (row["uid"] == "u") for row in rows)


def test_dumps_without_uids_are_grouped_by_prompt_or_by_step(tmp_path, capsys):
    published = [{name: row[name] for name in ("input", "output", "gts", "score", "step")} for row in group("u", 1, [1, 0])]
    write_jsonl(tmp_path / "1.jsonl", published)
    write_jsonl(tmp_path / "2.jsonl", [{**row, "step": 2, "feedback": None} for row in published])
    rows = prepare(tmp_path / "out", "--input", f"{tmp_path}/*.jsonl")  # an absolute pattern
    assert len({row["prompt_id"] for row in rows}) == 1 and [row["response_id"][-2:] for row in rows] == ["r0", "r1", "r2", "r3"]
    assert "1 prompts mix responses of several steps" in capsys.readouterr().out
    assert not any(row["has_feedback"] or row["feedback_text"] for row in rows)
    apart = prepare(tmp_path / "apart", "--input", tmp_path / "1.jsonl", tmp_path / "2.jsonl", "--by-step")
    assert Counter(row["prompt_id"][16:] for row in apart) == {"_s1": 2, "_s2": 2}


def test_what_cannot_be_compared_is_left_out_and_counted(tmp_path, capsys):
    rows = [*group("one", 1, [1]), *group("two", 1, [0, 0.7]), *group("judge", 1, [0, 0], outcome="error")]
    write_jsonl(tmp_path / "1.jsonl", rows)
    assert {row["uid"] for row in prepare(tmp_path / "out", "--input", tmp_path)} == {"two"}
    said = capsys.readouterr().out
    for note in ("1 prompts have fewer than 2", "2 responses could not be judged", "1 rewards lie from 0.5", "no response is a success"):
        assert note in said
    total = json.loads((tmp_path / "out" / "dataset_summary.json").read_text())["aggregate"]
    assert (total["prompts_left_out_too_few_responses"], total["responses_left_out_judge_error"], total["prompt_count"]) == (1, 2, 1)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=12), min_size=1, max_size=12), st.integers(1, 12))
def test_as_many_prompts_of_each_bucket_as_there_are(scores, most):
    groups = []
    for number, group_scores in enumerate(scores):
        places = [prepare_rollout_dataset.Place(0, i, i, score == 1) for i, score in enumerate(group_scores)]
        groups.append(prepare_rollout_dataset.Members(f"u{number}", places=places, prompt_id=f"u{number}"))
    options = prepare_rollout_dataset.argparse.Namespace(min_responses_per_prompt=2, max_responses_per_prompt=8, max_prompts=most, seed=1)
    enough = [members.prompt_id for members in groups if len(members.places) >= 2]
    kept = prepare_rollout_dataset.choose(groups, options, prepare_rollout_dataset.Tally())
    assert [m.prompt_id for m in kept] == sorted((m.prompt_id for m in kept), key=enough.index)
    assert len(kept) == min(most, len(enough)) and all(2 <= len(members.places) <= 8 for members in kept)
    taken = Counter(members.bucket for members in kept)
    there = Counter(members.bucket for members in groups if members.prompt_id in enough)
    for bucket, count in there.items():  # one that gave fewer than another has no more
        assert taken[bucket] == count or taken[bucket] >= max(taken.values()) - 1


def test_partly_right_responses_are_told(tmp_path, capsys):
    write_jsonl(tmp_path / "1.jsonl", group("5", 1, [0.49, 0.5, 0.9, 1]))
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    assert "note: 2 rewards lie from 0.5 up to --success-threshold 1: failures here" in capsys.readouterr().out


def test_every_bucket_gives_its_share():
    scores = [[0, 0]] * 6 + [[1, 0]] * 6
    groups = [
        prepare_rollout_dataset.Members(
            f"u{n}", places=[prepare_rollout_dataset.Place(0, i, i, s == 1) for i, s in enumerate(one)], prompt_id=f"u{n}"
        )
        for n, one in enumerate(scores)
    ]
    options = prepare_rollout_dataset.argparse.Namespace(min_responses_per_prompt=2, max_responses_per_prompt=8, max_prompts=6, seed=1)
    kept = prepare_rollout_dataset.choose(groups, options, prepare_rollout_dataset.Tally())
    assert Counter(members.bucket for members in kept) == {"hard": 3, "medium": 3}


def test_a_file_counts_once_and_what_was_written_is_no_dump(tmp_path, capsys, monkeypatch):
    write_jsonl(tmp_path / "dumps" / "1.jsonl", [{**row, "uid": None} for row in group("5", 1, [1, 0])])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dumps" / "1.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in row.items() if k != "uid"}) + "\n" for row in group("5", 1, [1, 0]))
    )
    for _ in range(2):  # the second time its own files lie beside the dump
        assert len(prepare(tmp_path / "dumps", "--input", "dumps", tmp_path / "dumps", "dumps/1.jsonl")) == 2
    assert prepare_rollout_dataset.main(["--input", "dumps", "--output-dir", "out", "--max-responses-per-prompt", "1"]) == 2
    assert "--max-responses-per-prompt 1 is below --min-responses-per-prompt 2" in capsys.readouterr().err
    (tmp_path / "taken").write_text("")
    assert prepare_rollout_dataset.main(["--input", "dumps", "--output-dir", "taken"]) == 2
    assert "error: taken: File exists." in capsys.readouterr().err


def test_legacy_feedback_and_another_are_chosen_as_published(tmp_path):
    rows = [row | {"feedback": "look again"} for row in group("5", 1, [1, 1, 1])]
    write_jsonl(tmp_path / "dumps" / "1.jsonl", rows)
    prepare(tmp_path / "out", "--input", tmp_path / "dumps")
    wanted = [
        {"name": "a", "include_another_solution": True, "include_feedback": True, "feedback_only_without_solution": True},
        {"name": "b", "include_another_solution": True, "dont_reprompt_on_self_success": False, "summary_sampling_policy": "first_k"},
    ]
    (tmp_path / "own.json").write_text(json.dumps({"variants": wanted}))
    more = ("--variant-config", tmp_path / "own.json", "--legacy-contexts")
    found = build(tmp_path / "v.jsonl", tmp_path / "out" / "candidate_responses.jsonl", *more)
    assert all(row["sections_used"]["feedback"] for row in of(found, "a"))  # another does not stand for a primary
    for row in of(found, "b"):
        assert f"{row['response_id']}::response_full" not in row["evidence_ids"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(rollout("u", 1, 0, 1)), line(rollout("u", 1, 1, 1))[:40]], r"1\.jsonl:2: the last line is cut off"),
        ([line({**rollout("u", 1, 0, 1), "score": None})], r"1\.jsonl:1: field 'score' is None"),
        ([line({k: v for k, v in rollout("u", 1, 0, 1).items() if k != "output"})], r"1\.jsonl:1: has no field 'output'"),
        ([line(rollout("u", 1, 0, 1)), line({"input": "a", "output": "b", "score": 1})], r"1\.jsonl:2: has no uid, unlike the rows before"),
        ([line(rollout("u", 1, 0, 1))] * 2, r"1\.jsonl:2: rollout 0 of uid 'u' stands there twice"),
        ([line(rollout("u", 1, 0, 1))], r"none of the 1 prompts in 1 files has 2 judged responses"),
    ],
)
def test_bad_dumps_are_refused_and_leave_nothing(tmp_path, capsys, lines, message):
    write_lines(tmp_path / "1.jsonl", *lines)
    assert prepare_rollout_dataset.main(["--input", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


# ---- the published layout ----


def test_legacy_contexts_are_the_published_ones(shared_data, tmp_path):
    folder = shared_data / "rollouts_sample"
    rows = build(
        tmp_path / "v.jsonl", folder / "candidate_responses.jsonl", "--evidence", folder / "evidence_items.jsonl", "--legacy-contexts"
    )
    made, wanted = {row["variant_id"]: row for row in rows}, sample(shared_data, "context_variants")
    lines = (folder / "context_variants.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(wanted) == 108 and len(rows) == 12 * len(conditions.named(None)) == 12 * 19
    later = {"force_reprompt": False, "force_raw_prompt": False, "peer_control": None}  # switches this older file has not
    for row, text in zip(wanted, lines, strict=True):
        ours = made[row["variant_id"]]
        assert ours["variant_spec"] == row["variant_spec"] | later
        assert line(ours | {"variant_spec": row["variant_spec"]}) == text  # byte for byte
    names = {row["condition"] for row in wanted}
    assert [row["variant_id"] for row in rows if row["condition"] in names] == [row["variant_id"] for row in wanted]


# ---- as training shows it ----


@pytest.fixture(scope="module")
def trained(guessing_model, chains_data, tmp_path_factory):
    """The dumps of two steps of training."""
    out = tmp_path_factory.mktemp("contexts")
    more = ("trainer.total_training_steps=2", f"{DISTILL}.failure_order=per_member", "data.seed=7")
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, out, *more, n=6))) as loop:
        loop.run()
    return out


def test_contexts_are_those_training_showed(trained, guessing_model, tmp_path):
    rows = prepare(tmp_path / "out", "--input", trained / "rollouts")
    dumped = {
        f"{row['uid']}_s{row['step']}_r{row['rollout_index']}": row
        for file in (1, 2)
        for row in read_jsonl(trained / f"rollouts/{file}.jsonl")
    }
    assert len(rows) == len(dumped) == 48 and len({row["prompt_id"] for row in rows}) == 8
    settings = ("--set", "data.seed=7", f"{DISTILL}.failure_order=per_member", f"{DISTILL}.max_reprompt_len=256")
    variants = build(tmp_path / "v.jsonl", tmp_path / "out" / "candidate_responses.jsonl", "--model", guessing_model, *settings)
    sections = {"primary": "solution", "another": "another_solution", "failure": "failure_solution"}
    shown = 0
    for row in of(variants, "solution+another_solution+failure_solution"):
        was = dumped[row["response_id"]]
        prompt = row["response_id"].rpartition("_r")[0]
        assert row["peers"] == [
            {"section": sections[peer["role"]], "response_id": f"{prompt}_r{peer['rollout_index']}"} for peer in was["peers"]
        ]
        shown += bool(row["peers"])
    assert shown > 20
    chat = load_chat(str(guessing_model), {})
    for row in of(variants, "base"):
        assert chat.decode(chat.encode(row["assembled_context_text"])) == dumped[row["response_id"]]["input"]


def test_rollouts_of_other_weights_are_told():
    def groups(*steps):
        return [(Candidates("x.jsonl:1", [{"rollout_step": step}]), None) for step in steps]

    assert build_context_variants.far(groups(20, 21, None), 20) is None
    told = build_context_variants.far(groups(1, 20, 40), 20)
    assert (
        "2 of 3 groups were sampled by other weights than those of step 20 (their steps: 1 to 40)" in told
        and "rollouts/NAME/21.jsonl" in told
    )


def test_every_condition_stands_in_the_frame_within_the_budget(shared_data, random_model, tmp_path, capsys):
    folder, budget = shared_data / "rollouts_sample", 2500
    rows = build(
        tmp_path / "v.jsonl",
        folder / "candidate_responses.jsonl",
        *("--evidence", folder / "evidence_items.jsonl", "--model", random_model, "--set", f"{DISTILL}.max_reprompt_len={budget}"),
    )
    assert "3 of 3 prompts read otherwise in the dump" in capsys.readouterr().out  # made by another model
    assert [row["condition"] for row in rows] == [condition.name for condition in conditions.named(None) for _ in range(12)]
    chat = load_chat(str(random_model), {})
    published = set(sample(shared_data, "context_variants")[0])
    plain = {row["response_id"]: row for row in of(rows, "base")}
    for row in rows:
        text = row["assembled_context_text"]
        assert published <= row.keys() and len(text) == row["assembled_context_length_chars"]
        assert len(chat.encode(text)) == row["context_tokens"] <= budget
        assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        nothing = not any(row["sections_used"].values())
        assert ("Correctly solve the original question." in text) is (not nothing or row["condition"] == "base_reprompt")
        if nothing and row["condition"] != "base_reprompt":
            assert text == plain[row["response_id"]]["assembled_context_text"]
        assert not any(name.startswith(row["response_id"] + "::") for name in row["evidence_ids"])
    assert any(row["cuts"] for row in rows)
    passed = {row["response_id"]: row["success"] for row in plain.values()}
    for row in of(rows, "verifier_score_ordered"):
        for peer in row["peers"]:
            assert passed[peer["response_id"]] is (peer["section"] != "failure_solution")
    slots = {row["response_id"]: row["peers"] for row in of(rows, "solution+another_solution+failure_solution")}
    for row in of(rows, "random_peer"):
        assert [peer["section"] for peer in row["peers"]] == [peer["section"] for peer in slots[row["response_id"]]]
    for row in of(rows, "random_summary_control"):
        assert all(not source["source_response_id"].startswith(row["prompt_id"]) for source in row["summary_sources"])
        assert len(row["summary_sources"]) == (2 if row["primary_solution_response_id"] else 0)


def test_controls_and_summaries_are_called_what_they_are(random_model, tmp_path):
    scores = [1, 0, 0, 1, 0, 1]
    told = [{**row, "output": f"{row['output']} <summary>{row['rollout_index']}</summary>"} for row in group("5", 1, scores)]
    write_jsonl(tmp_path / "1.jsonl", [*told, *group("7", 1, [0, 1])])
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    candidates = tmp_path / "out" / "candidate_responses.jsonl"
    rows = build(tmp_path / "v.jsonl", candidates, "--model", random_model)
    assert rows == build(tmp_path / "again.jsonl", candidates, "--model", random_model)
    rows = [row for row in rows if row["uid"] == "5"]
    labels = Counter()
    for row in of(rows, "random_peer"):
        assert [peer["section"] for peer in row["peers"]] == ["solution", "another_solution", "failure_solution"]
        labels.update((peer["section"], int(peer["response_id"][-1])) for peer in row["peers"])
    assert len(labels) > 10  # anyone in any slot
    for row in of(rows, "solution+feedback+summary_all_k2"):
        assert len(row["summary_sources"]) == 2 and row["sections_used"]["summary"] and row["sections_used"]["solution"]
        for source in row["summary_sources"]:
            heading = f"Summary of another {'s' if source['success'] else 'uns'}uccessful solution:\n\n{source['source_response_id'][-1]}"
            assert heading in row["assembled_context_text"]
            assert source["source_response_id"] not in (row["response_id"], row["primary_solution_response_id"])
    reprompt = of(rows, "base_reprompt")[0]["assembled_context_text"]
    assert reprompt.endswith("5+1=\n\nCorrectly solve the original question.<|im_end|>\n<|im_start|>assistant\n")


def test_the_context_is_the_renderers(random_model, tmp_path):
    write_jsonl(tmp_path / "1.jsonl", group("5", 3, [1, 0, 1, 0], feedback="wrong number", finished=True))
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    rows = build(tmp_path / "v.jsonl", tmp_path / "out" / "candidate_responses.jsonl", "--model", random_model, "--set", "data.seed=3")
    from analysis.groups import as_group, read_candidates

    (candidates,) = read_candidates(tmp_path / "out" / "candidate_responses.jsonl")
    settings = replace(distill(success_reward_threshold=0.5), include_environment_feedback=False)
    contexts = peers.select(as_group(candidates), settings, seed=3, step=3)
    for row, context in zip(of(rows, "solution+another_solution+failure_solution"), contexts, strict=True):
        rendered = peers.render(as_group(candidates).prompt, context, settings, load_chat(str(random_model), {}))
        assert row["assembled_context_text"] == rendered.text and row["context_tokens"] == len(rendered.token_ids)
    for row in of(rows, "solution+feedback"):
        assert "wrong number" in row["assembled_context_text"] and f"{row['response_id']}::feedback" in row["evidence_ids"]


def test_truncated_responses_are_shown_no_more_than_in_training(random_model, tmp_path):
    rows = group("5", 1, [1, 0, 0])
    rows[0]["finished"] = rows[1]["finished"] = False
    write_jsonl(tmp_path / "1.jsonl", rows)
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    variants = build(tmp_path / "v.jsonl", tmp_path / "out" / "candidate_responses.jsonl", "--model", random_model)
    assert {peer["response_id"] for row in variants for peer in row["peers"]} == {"5_s1_r2"}


def test_no_success_anywhere_leaves_plain_prompts(random_model, tmp_path, capsys):
    write_jsonl(tmp_path / "1.jsonl", group("5", 1, [0, 0]))
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    rows = build(tmp_path / "v.jsonl", tmp_path / "out" / "candidate_responses.jsonl", "--model", random_model)
    assert not any(row["sections_used"]["solution"] for row in rows)
    assert "no response is a success" in capsys.readouterr().out


def test_a_config_of_conditions(random_model, tmp_path, capsys):
    write_jsonl(tmp_path / "1.jsonl", group("5", 1, [1, 0, 1], feedback="no"))
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    candidates, file = tmp_path / "out" / "candidate_responses.jsonl", tmp_path / "c.json"
    file.write_text(
        json.dumps(
            {
                "global": {"feedback_only_without_solution": True, "summary_sampling_policy": "first_k"},
                "variants": [
                    {"name": "mine", "include_solution": True, "include_feedback": True},
                    {"name": "fb", "include_feedback": True},
                ],
            }
        )
    )
    for layout in (("--model", random_model), ("--legacy-contexts",)):
        rows = build(tmp_path / "v.jsonl", candidates, "--variant-config", file, *layout)
        assert [row["sections_used"]["feedback"] for row in of(rows, "mine")] == [
            not row["sections_used"]["solution"] for row in of(rows, "mine")
        ]
        assert all(row["sections_used"]["feedback"] for row in of(rows, "fb"))
    capsys.readouterr()
    for variants, message in (
        ([{"name": "x", "include_solutoin": True}], "unknown switch 'include_solutoin'"),
        ([{"name": "x", "peer_control": "best"}], "peer_control is 'best'"),
        ([{"name": "x"}, {"name": "x"}], "stands there twice"),
        ([{"name": "x", "include_summary": True, "include_failure_solution": True}], "--legacy-contexts has slots of their own"),
    ):
        file.write_text(json.dumps({"variants": variants}))
        arguments = ["--candidates", str(candidates), "--output", str(tmp_path / "no"), "--variant-config", str(file)]
        assert build_context_variants.main([*arguments, "--model", str(random_model)]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_what_cannot_be_built_is_said(random_model, tmp_path, capsys):
    write_jsonl(tmp_path / "1.jsonl", group("5", 1, [1, 0]))
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl")
    candidates = tmp_path / "out" / "candidate_responses.jsonl"
    rows = read_jsonl(candidates)
    del rows[1]["success"]
    write_jsonl(tmp_path / "lacking.jsonl", rows)
    rows = [{name: value for name, value in row.items() if name != "messages"} | {"prompt": "plain text"} for row in read_jsonl(candidates)]
    write_jsonl(tmp_path / "flat.jsonl", rows)
    write_jsonl(tmp_path / "evidence.jsonl", [{"evidence_id": "other"}])
    model = ("--model", str(random_model))
    for arguments, message in (
        ((str(tmp_path / "lacking.jsonl"), *model), "lacking.jsonl:2: has no field 'success'"),
        ((str(tmp_path / "flat.jsonl"), *model), "flat.jsonl:1: which messages made up the prompts cannot be told"),
        ((str(candidates),), "--model is needed"),
        ((str(candidates), *model, "--evidence", str(tmp_path / "evidence.jsonl")), "has no '5_s1_r"),
        ((str(candidates), *model, "--conditions", "solutions"), "--conditions solutions: known are base"),
        (
            (str(candidates), *model, "--set", f"{DISTILL}.max_reprompt_len=5"),
            "candidate_responses.jsonl:1: prompt '5': the question in its frame takes",
        ),
        ((str(candidates), *model, "--set", "data.sede=5"), "did you mean 'data.seed'"),
        ((str(candidates), "--model", str(tmp_path)), "holds no config.json"),
    ):
        assert build_context_variants.main(["--output", str(tmp_path / "no"), "--candidates", *arguments]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()


WORDS = st.text(st.sampled_from("ab\n <|"), max_size=12)


@given(st.one_of(st.none(), WORDS), WORDS, st.sampled_from(["", "<think>\n\n</think>\n\n", "<think>\n"]))
def test_flattened_prompts_are_read_back(system, user, thinking):
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = "".join(f"{message['role']}\n{message['content']}\n" for message in messages) + f"assistant\n{thinking}"
    assert unflatten(text) == messages


@pytest.mark.parametrize(
    "text", ["5+1=", "user\n5+1=", "user\na\nassistant\nb\nuser\nc\nassistant\n", "user\nthe words\nuser\nand so on\nassistant\n"]
)
def test_what_could_be_read_in_two_ways_is_not(text):
    assert unflatten(text) is None


# ---- targets ----


def test_targets_of_each_kind(tmp_path, capsys):
    write_jsonl(tmp_path / "1.jsonl", [*group("5", 1, [0] * 2 + [1] * 10), *group("6", 1, [0, 0])])
    prepare(tmp_path / "out", "--input", tmp_path / "1.jsonl", "--max-responses-per-prompt", 12)
    strong = [{"prompt_id": "6_s1", "response_text": "Answer:7", "reward": None}, {"prompt_id": "9", "response_text": "?"}]
    strong.append({"prompt_id": "6_s1", "response_text": "Answer:8", "validated_success": False})
    write_jsonl(tmp_path / "strong.jsonl", strong)
    arguments = ["--candidates", str(tmp_path / "out" / "candidate_responses.jsonl"), "--output", str(tmp_path / "t.jsonl")]
    assert (
        build_target_responses.main([*arguments, "--strong-success", str(tmp_path / "strong.jsonl"), "--student-success-per-prompt", "9"])
        == 0
    )
    rows = read_jsonl(tmp_path / "t.jsonl")
    assert [row["source_response_id"] for row in rows if row["target_type"] == "student_success"] == [f"5_s1_r{i}" for i in range(2, 11)]
    assert [row["source_response_id"] for row in rows if row["target_type"] == "student_failure"] == ["5_s1_r0", "6_s1_r0"]
    (last,) = [row for row in rows if row["target_type"] == "strong_success"]
    assert (last["response_text"], last["reward"], last["success"], last["source_model"]) == ("Answer:7", 1.0, True, "strong_model")
    said = capsys.readouterr().out
    assert "1 strong responses are marked as not validated" in said and "1 strong responses belong to prompts that are not" in said


# ---- as a user runs them ----


def test_scripts_run_from_anywhere(tmp_path):
    write_jsonl(tmp_path / "1.jsonl", group("5", 1, [1, 0]))
    script = ROOT / "analysis" / "prepare_rollout_dataset.py"
    command = [sys.executable, str(script), "--input", str(tmp_path / "1.jsonl"), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 responses to 1 prompts, 1 of them with successes and failures" in done.stdout
    module = [sys.executable, "-m", "analysis.build_target_responses"]
    for command in ([sys.executable, str(ROOT / "analysis" / "build_context_variants.py")], module):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "the following arguments are required: --candidates" in done.stderr
