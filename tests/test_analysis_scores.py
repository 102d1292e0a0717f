"""Scores: those of a plain forward pass, whatever is packed and shared; the right weights; killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from analysis import build_context_variants, build_target_responses, prepare_rollout_dataset, score_teacher_contexts
from analysis.scoring import ForestScorer
from tests.analysis_data import group, published_dumps
from tests.tools import ROOT, in_process, overrides
from trainer import config, forest
from trainer.files import read_jsonl, write_jsonl
from trainer.models import build_lm, load_chat
from trainer.workers.sharding import whole_weights

AS_TRAINED = ("base", "training", "random_peer")
CONDITIONS = ("base", "base_raw", "solution", "solution+failure_solution", "random_peer")


def contexts(folder: Path, dumps: Path, model: Path, *more: str, conditions=CONDITIONS) -> Path:
    """Prepare dumps and build the contexts of some conditions; return the folder with the files."""
    assert prepare_rollout_dataset.main(["--input", str(dumps), "--output-dir", str(folder)]) == 0
    chosen = ["--conditions", *conditions, "--candidates", str(folder / "candidate_responses.jsonl")]
    variants = ["--output", str(folder / "context_variants.jsonl")]
    assert build_context_variants.main([*chosen, *variants, "--model", str(model), *more]) == 0
    return folder


def arguments(folder: Path, model: Path, *more) -> list[str]:
    files = ["--variants", folder / "context_variants.jsonl", "--targets", folder / "candidate_responses.jsonl"]
    output = [] if "--output" in more else ["--output", folder / "scores.jsonl"]
    return [str(value) for value in (*files, *output, "--self-target-only", "--model", model, *more)]


def score(folder: Path, model: Path, *more) -> list[dict]:
    given_arguments = arguments(folder, model, *more)
    assert score_teacher_contexts.main([*given_arguments, "--overwrite"]) == 0
    return read_jsonl(Path(given_arguments[given_arguments.index("--output") + 1]))


@torch.no_grad()
def plain_logp(lm: torch.nn.Module, context, response) -> np.ndarray:
    """The definition: one sequence, transformers' own attention, the softmax over all logits."""
    path = torch.tensor([[*context, *response]], dtype=torch.int64)
    logp = lm(path).logits[0, len(context) - 1 : -1].double().log_softmax(-1)
    return logp.gather(-1, torch.tensor(list(response), dtype=torch.int64)[:, None])[:, 0].numpy()


def by_id(folder: Path, name: str, key: str) -> dict[str, dict]:
    return {row[key]: row for row in read_jsonl(folder / name)}


@pytest.fixture(scope="module")
def real(shared_data, random_model, tmp_path_factory):
    """Candidates and contexts of the real sample, its responses shortened."""
    folder = tmp_path_factory.mktemp("real")
    return contexts(folder, published_dumps(shared_data, folder / "dumps", characters=150), random_model)


def check_against_plain(rows, folder, lm, chat):
    variants, candidates = by_id(folder, "context_variants.jsonl", "variant_id"), by_id(folder, "candidate_responses.jsonl", "response_id")
    for row in rows:
        response = candidates[row["target_id"]]
        ids = response.get("response_ids") or chat.encode(response["response_text"])
        wanted = plain_logp(lm, chat.encode(variants[row["variant_id"]]["assembled_context_text"]), ids)
        assert row["teacher_response_len"] == len(ids)
        np.testing.assert_allclose(row["teacher_score"], wanted.mean(), atol=1e-4)
        np.testing.assert_allclose(row["teacher_seq_logprob"], wanted.sum(), atol=1e-4 * len(ids))
        if "token_logprobs" in row:
            np.testing.assert_allclose(row["token_logprobs"], wanted, atol=1e-4)


def test_scores_of_the_real_sample_are_those_of_a_plain_forward(real, random_model, capsys):
    rows = score(real, random_model, "--token-scores", "--max-tokens", 3000)
    assert len(rows) == 12 * len(CONDITIONS)
    check_against_plain(
        rows, real, AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval(), load_chat(str(random_model), {})
    )
    published = ["variant_id", "target_id", "condition", "target_type", "prompt_id", "response_id", "source_model", "teacher_model"]
    published += ["sections_used", "variant_spec", "teacher_seq_logprob", "teacher_avg_token_logprob", "teacher_score"]
    published += ["teacher_response_len", "teacher_prompt_len", "teacher_prompt_truncated", "reward", "success", "difficulty_bucket"]
    assert all(list(row)[: len(published)] == published for row in rows)
    assert {(row["target_type"], row["source_model"], row["teacher_model"]) for row in rows} == {
        ("self_response", "student_rollout", str(random_model))
    }
    variants = by_id(real, "context_variants.jsonl", "variant_id")
    assert [row["variant_id"] for row in rows] == list(variants)
    assert all(row["teacher_prompt_len"] == variants[row["variant_id"]]["context_tokens"] for row in rows)
    base, raw = ({row["target_id"]: row["teacher_score"] for row in rows if row["condition"] == name} for name in ("base", "base_raw"))
    assert base == raw  # scored once
    assert "one by one" in capsys.readouterr().out and not list(real.glob("*.progress"))


def test_published_variants_are_scored_as_they_stand(shared_data, random_model, tmp_path):
    folder = shared_data / "rollouts_sample"
    targets = [{**row, "response_text": row["response_text"][:200]} for row in read_jsonl(folder / "candidate_responses.jsonl")]
    write_jsonl(tmp_path / "candidate_responses.jsonl", targets)
    (tmp_path / "context_variants.jsonl").symlink_to(folder / "context_variants.jsonl")
    filters = ("--condition-filter", "base", "failure_only", "--max-examples", 16, "--legacy-contexts", "--max-model-len", 1200)
    rows = score(tmp_path, random_model, *filters)
    assert len(rows) == 16 and [row["condition"] for row in rows] == ["base"] * 12 + ["failure_only"] * 4
    lm, chat = AutoModelForCausalLM.from_pretrained(random_model, dtype=torch.float32).eval(), load_chat(str(random_model), {})
    variants, texts = by_id(tmp_path, "context_variants.jsonl", "variant_id"), {row["response_id"]: row["response_text"] for row in targets}
    for row in rows[-6:]:
        response = chat.encode(texts[row["target_id"]])
        context = chat.encode(variants[row["variant_id"]]["assembled_context_text"])
        kept = context[-(1200 - len(response)) :]  # cut from the left
        assert row["teacher_prompt_truncated"] is (len(context) > len(kept)) and row["teacher_prompt_len"] == len(kept)
        np.testing.assert_allclose(row["teacher_score"], plain_logp(lm, kept, response).mean(), atol=1e-4)


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda ids: np.array(ids, np.int32))


@given(
    st.lists(st.tuples(tokens, tokens), min_size=1, max_size=20),
    st.lists(st.integers(0, 3), min_size=30, max_size=30),
    st.integers(20, 200),
)
def test_batches_hold_every_pair_once_within_the_budget(pairs, beginning, budget):
    pairs = [(np.concatenate([np.array(beginning[: 3 * len(c)], np.int32), c]), r) for c, r in pairs]  # that something is shared
    scorer = ForestScorer(torch.nn.Identity(), max_tokens=budget)
    batches = scorer.batches(pairs)
    assert sorted(i for batch in batches for i in batch) == list(range(len(pairs)))
    assert all(len(batch) == 1 or forest.token_count([pairs[i] for i in batch]) <= budget for batch in batches)


# ---- a run of ours ----


@pytest.fixture(scope="module")
def run(guessing_model, chains_data, tmp_path_factory):
    """Two steps of training with a fast teacher: dumps, a checkpoint, and the weights it was written from."""
    out = tmp_path_factory.mktemp("scored")
    more = ("trainer.total_training_steps=2", "trainer.save_freq=2", "actor_rollout_ref.actor.self_distillation.teacher_update_rate=0.5")
    more += ("actor_rollout_ref.actor.optim.lr=0.01", "actor_rollout_ref.actor.optim.lr_warmup_steps=0", "data.seed=11")
    more += tuple(f"actor_rollout_ref.actor.self_distillation.{key}" for key in ("num_success_peers=1", "num_failure_peers=2"))
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, out, *more))) as loop:
        loop.run()
        actor = loop.workers.actor
        weights = {name: whole_weights(lm, torch.float32) for name, lm in (("ema", actor.second), ("student", actor.student))}
    contexts(out / "analysis", out / "rollouts", out / "checkpoints", conditions=AS_TRAINED)
    return out, weights


def test_the_settings_of_a_checkpoint_are_those_of_its_run(run):
    out, _ = run
    dumped = {
        (row["uid"], row["step"], row["rollout_index"]): row for step in (1, 2) for row in read_jsonl(out / "rollouts" / f"{step}.jsonl")
    }
    candidates = by_id(out / "analysis", "candidate_responses.jsonl", "response_id")
    contexts_of = [row for row in read_jsonl(out / "analysis" / "context_variants.jsonl") if row["condition"] == "training"]
    for row in contexts_of:
        own = candidates[row["response_id"]]
        was = dumped[own["uid"], own["rollout_step"], own["rollout_index"]]
        assert [candidates[peer["response_id"]]["rollout_index"] for peer in row["peers"]] == [
            peer["rollout_index"] for peer in was["peers"]
        ]
    assert len(contexts_of) == 32 and any(row["peers"] for row in contexts_of)


def test_a_checkpoint_is_read_with_its_ema_teacher_and_the_student_beside_it(run, guessing_model):
    out, weights = run
    rows = score(out / "analysis", out / "checkpoints", "--token-scores")
    assert len(rows) == 32 * (len(AS_TRAINED) + 1) and [row["teacher_weights"] for row in rows[-33:]] == ["ema"] + ["student"] * 32
    chat = load_chat(str(guessing_model), {})
    candidates = by_id(out / "analysis", "candidate_responses.jsonl", "response_id")
    assert all(chat.stop_ids()[0] == row["response_ids"][-1] for row in candidates.values() if row["finished"])
    lm = AutoModelForCausalLM.from_pretrained(guessing_model, dtype=torch.float32).eval()
    contexts_of = by_id(out / "analysis", "context_variants.jsonl", "variant_id")
    for whose in ("ema", "student"):
        lm.load_state_dict(weights[whose], strict=False)
        mine = [row for row in rows if row["teacher_weights"] == whose]
        if whose == "ema":
            check_against_plain(mine[::3], out / "analysis", lm, chat)
        else:
            base = {row["response_id"]: row["assembled_context_text"] for row in contexts_of.values() if row["condition"] == "base"}
            assert {row["condition"] for row in mine} == {"student"}
            for row in mine[::3]:
                wanted = plain_logp(lm, chat.encode(base[row["target_id"]]), candidates[row["target_id"]]["response_ids"])
                np.testing.assert_allclose(row["token_logprobs"], wanted, atol=1e-4)
    teacher, student = (
        {row["target_id"]: row["teacher_score"] for row in rows if row["condition"] == name} for name in ("base", "student")
    )
    assert max(abs(teacher[name] - student[name]) for name in teacher) > 0.01  # the weights are not the same


def test_the_student_alone_and_the_two_together(run, tmp_path):
    out, _ = run
    both = score(out / "analysis", out / "checkpoints" / "global_step_2", "--output", tmp_path / "both.jsonl")
    alone = score(
        out / "analysis", out / "checkpoints", "--teacher", "student", "--condition-filter", "base", "--output", tmp_path / "s.jsonl"
    )
    assert {row["teacher_weights"] for row in alone} == {"student"}
    ours = {row["target_id"]: row["teacher_score"] for row in both if row["condition"] == "student"}
    np.testing.assert_allclose([row["teacher_score"] for row in alone], [ours[row["target_id"]] for row in alone], atol=1e-5)
    assert all(row["condition"] != "student" for row in score(out / "analysis", out / "checkpoints", "--no-student", "--max-examples", 40))


def test_validation_dumps_are_accepted(run, tmp_path):
    out, _ = run
    dump = tmp_path / "validation"
    dump.mkdir()
    rows = read_jsonl(out / "rollouts" / "2.jsonl")
    write_jsonl(dump / "0.jsonl", [{**row, "step": 0, "peers": []} for row in rows])  # as run_eval_sdpo.sh writes it
    folder = contexts(tmp_path / "out", dump, out / "checkpoints", conditions=("base",))
    assert len(score(folder, out / "checkpoints", "--no-student")) == 16


def test_every_target_under_every_context(run, tmp_path):
    out, _ = run
    folder = out / "analysis"
    targets = ["--candidates", str(folder / "candidate_responses.jsonl"), "--output", str(folder / "targets.jsonl")]
    assert build_target_responses.main(targets) == 0
    given_arguments = [value for value in arguments(folder, out / "checkpoints", "--no-student") if value != "--self-target-only"]
    given_arguments[3], given_arguments[5] = str(folder / "targets.jsonl"), str(tmp_path / "scores.jsonl")
    assert score_teacher_contexts.main([*given_arguments, "--target-type-filter", "student_success"]) == 0
    rows, wanted = read_jsonl(tmp_path / "scores.jsonl"), by_id(folder, "targets.jsonl", "target_id")
    per_prompt = {row["prompt_id"]: row for row in wanted.values() if row["target_type"] == "student_success"}
    assert len(rows) == 4 * len(AS_TRAINED) * len(per_prompt)
    variants = by_id(folder, "context_variants.jsonl", "variant_id")
    for row in rows:
        target = per_prompt[row["prompt_id"]]
        assert (row["target_id"], row["reward"], row["success"]) == (target["target_id"], target["reward"], True)
        shown = {name.split("::")[0] for name in variants[row["variant_id"]]["evidence_ids"]}
        assert row["target_in_context"] is (target["source_response_id"] in shown)
    assert any(row["target_in_context"] for row in rows)


# ---- killed, cut off, and what is refused ----


def start(folder: Path, model: Path, *more) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "analysis" / "score_teacher_contexts.py"), *arguments(folder, model, *more)]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)


def test_a_killed_scoring_goes_on(real, random_model, tmp_path, capsys):
    few = ("--token-scores", "--condition-filter", "base", "solution")
    whole = score(real, random_model, "--output", tmp_path / "whole.jsonl", *few)
    output, progress = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.progress"
    options = ("--output", output, *few, "--max-tokens", 1)
    process = start(real, random_model, *options)
    while (process.poll() is None) and not (progress.is_file() and progress.read_bytes().count(b"\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    done = progress.read_bytes().count(b"\n") - 1
    assert 3 <= done < len(whole)
    with progress.open("ab") as file:
        file.write(b'{"variant_id": "cut o')
    capsys.readouterr()
    rows = score(real, random_model, *options)
    assert f"going on: {done} scores" in capsys.readouterr().out and not progress.exists()
    assert [row["variant_id"] for row in rows] == [row["variant_id"] for row in whole]
    for ours, wanted in zip(rows, whole, strict=True):
        np.testing.assert_allclose(ours.pop("token_logprobs"), wanted.pop("token_logprobs"), atol=1e-4)
        assert {k: v for k, v in ours.items() if "logprob" not in k and k != "teacher_score"} == {
            k: v for k, v in wanted.items() if "logprob" not in k and k != "teacher_score"
        }


def test_progress_of_another_scoring_is_not_mixed_in(real, random_model, guessing_model, tmp_path, capsys):
    output = tmp_path / "s.jsonl"
    (tmp_path / "s.jsonl.progress").write_text(json.dumps({"model": "another"}) + "\n")
    assert score_teacher_contexts.main(arguments(real, random_model, "--output", output)) == 2
    assert "model was 'another'" in capsys.readouterr().err and not output.exists()


def test_what_cannot_be_scored_is_said(real, random_model, tmp_path, capsys):
    variants, candidates = read_jsonl(real / "context_variants.jsonl"), read_jsonl(real / "candidate_responses.jsonl")

    def refused(message: str, *more, variants=variants, candidates=candidates):
        write_jsonl(tmp_path / "context_variants.jsonl", variants)
        write_jsonl(tmp_path / "candidate_responses.jsonl", candidates)
        assert score_teacher_contexts.main(arguments(tmp_path, random_model, *more)) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "scores.jsonl").exists()

    refused("context_variants.jsonl:1: the context takes", variants=[{**row, "context_tokens": 5} for row in variants])
    refused("do not read as its text", candidates=[{**row, "response_ids": [5, 6]} for row in candidates])
    refused("do not read as its text", candidates=[{**row, "response_ids": [10**6]} for row in candidates])
    refused("is not in", candidates=candidates[1:])
    refused("candidate_responses.jsonl:13: response", candidates=[*candidates, candidates[0]])
    refused("stood already together at", variants=[*variants, variants[0]])
    refused("candidate_responses.jsonl:1: has no field 'reward'", candidates=[{k: v for k, v in candidates[0].items() if k != "reward"}])
    refused("--condition-filter solutoin", "--condition-filter", "base", "solutoin")
    refused("more than --max-model-len 430", "--max-model-len", 430)
    refused("nothing is left to score", "--max-model-len", 100, "--skip-too-long")
    refused("--teacher ema", "--teacher", "ema")
    refused("no such file", "--variants", tmp_path / "none.jsonl")


def test_what_is_left_out_is_counted(real, random_model, tmp_path, capsys):
    (tmp_path / "context_variants.jsonl").symlink_to(real / "context_variants.jsonl")
    candidates = read_jsonl(real / "candidate_responses.jsonl")
    candidates[0]["response_text"] = ""
    write_jsonl(tmp_path / "candidate_responses.jsonl", candidates)
    variants = by_id(real, "context_variants.jsonl", "variant_id").values()
    capsys.readouterr()
    rows = score(tmp_path, random_model, "--max-model-len", 430, "--skip-too-long")
    said = capsys.readouterr().out
    assert f"{len(CONDITIONS)} responses without a token" in said
    assert f"{len(variants) - len(CONDITIONS) - len(rows)} rows longer than --max-model-len" in said and rows


def test_texts_stand_in_where_another_tokenizer_made_the_ids(real, random_model, tmp_path):
    (tmp_path / "context_variants.jsonl").symlink_to(real / "context_variants.jsonl")
    write_jsonl(
        tmp_path / "candidate_responses.jsonl", [{**row, "response_ids": [5]} for row in read_jsonl(real / "candidate_responses.jsonl")]
    )
    few = ("--condition-filter", "base", "--max-examples", 3)
    by_text = score(tmp_path, random_model, "--retokenize", *few)
    assert [row["teacher_score"] for row in by_text] == [row["teacher_score"] for row in score(real, random_model, *few)]


# ---- vLLM ----


@pytest.mark.slow
def test_vllm_scores_as_the_forest_does(run, tmp_path):
    out, _ = run
    ours = score(out / "analysis", out / "checkpoints", "--token-scores", "--output", tmp_path / "hf.jsonl")
    theirs = score(out / "analysis", out / "checkpoints", "--token-scores", "--engine", "vllm", "--output", tmp_path / "vllm.jsonl")
    assert [row["variant_id"] for row in ours] == [row["variant_id"] for row in theirs]
    assert {row["teacher_weights"] for row in theirs} == {"ema", "student"}
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a["token_logprobs"], b["token_logprobs"], atol=1e-4)


@pytest.mark.slow
def test_vllm_scores_responses_whose_beginning_is_cached(guessing_model):
    from trainer.engines.base import Settings
    from trainer.engines.vllm_scorer import VLLMScorer

    rng = np.random.default_rng(0)
    context, beginning = rng.integers(5, 20, 70).astype(np.int32), rng.integers(5, 20, 40).astype(np.int32)
    responses = [np.concatenate([beginning, rng.integers(5, 20, n).astype(np.int32)]) for n in (3, 30, 1)]
    pairs = [(context, response) for response in [*responses, responses[0]]]
    lm = build_lm(str(guessing_model), attention="forest", dtype=torch.float32)
    wanted = ForestScorer(lm).score(pairs)
    engine = VLLMScorer(str(guessing_model), stop_ids=[], settings=Settings(max_num_seqs=2, max_model_len=160))
    try:
        for _ in range(2):  # the second time everything is cached
            for got, score_wanted in zip(engine.score(pairs), wanted, strict=True):
                np.testing.assert_allclose(got, score_wanted, atol=1e-4)
    finally:
        engine.close()


def test_groups_of_one_response_and_of_no_success_are_scored_or_left_out(random_model, tmp_path):
    write_jsonl(tmp_path / "dumps" / "1.jsonl", [*group("5", 1, [0, 0]), *group("6", 1, [1])])
    folder = contexts(tmp_path / "out", tmp_path / "dumps", random_model)
    rows = score(folder, random_model)
    assert {row["prompt_id"] for row in rows} == {"5_s1"} and len(rows) == 2 * len(CONDITIONS)


def test_equal_responses_are_tied_to_the_last_bit(random_model, tmp_path):
    same = [row | {"output": "1+2=3\n4+3=7\nAnswer:7"} for row in group("5", 1, [1, 0, 1, 0, 1, 0])]
    write_jsonl(tmp_path / "dumps" / "1.jsonl", [*same[:4], *group("5", 1, [1, 0, 1, 0, 1, 0])[4:]])
    rows = score(contexts(tmp_path / "out", tmp_path / "dumps", random_model), random_model, "--max-tokens", "64")
    base = {row["response_id"]: row["teacher_score"] for row in rows if row["condition"] == "base"}
    assert len({base[f"5_s1_r{k}"] for k in range(4)}) == 1 and len(set(base.values())) == 3


def test_a_response_is_shown_where_its_text_is_and_not_where_its_feedback_is(random_model, tmp_path):
    said = [row | {"uid": "data::5", "feedback": "wrong: 3 expected"} for row in group("5", 1, [1, 0, 1])]
    write_jsonl(tmp_path / "dumps" / "1.jsonl", said)
    folder = contexts(tmp_path / "out", tmp_path / "dumps", random_model, conditions=("feedback", "solution"))
    targets = ["--candidates", str(folder / "candidate_responses.jsonl"), "--output", str(folder / "targets.jsonl")]
    assert build_target_responses.main(targets) == 0
    asked = ["--variants", folder / "context_variants.jsonl", "--targets", folder / "targets.jsonl", "--output", folder / "all.jsonl"]
    assert score_teacher_contexts.main([str(value) for value in (*asked, "--model", random_model)]) == 0
    rows = read_jsonl(folder / "all.jsonl")
    variants = by_id(folder, "context_variants.jsonl", "variant_id")
    targets = by_id(folder, "targets.jsonl", "target_id")
    for row in rows:
        text = targets[row["target_id"]]["response_text"]
        assert row["target_in_context"] is (
            row["condition"] == "solution" and text in variants[row["variant_id"]]["assembled_context_text"]
        )
    assert any(row["target_in_context"] for row in rows)


def of_two(tmp_path: Path, model: Path) -> Path:
    """Return a folder ready for scoring, with one group of a success and a failure."""
    write_jsonl(tmp_path / "dumps" / "1.jsonl", group("5", 1, [1, 0]))
    return contexts(tmp_path / "out", tmp_path / "dumps", model)


def test_a_finished_file_is_not_written_over(random_model, tmp_path, capsys):
    folder = of_two(tmp_path, random_model)
    (folder / "scores.jsonl").write_text("mine\n")
    assert score_teacher_contexts.main(arguments(folder, random_model)) == 2
    assert "is there already. Choose another --output, or --overwrite" in capsys.readouterr().err
    assert (folder / "scores.jsonl").read_text() == "mine\n"


def test_damaged_progress_is_named(random_model, tmp_path, capsys):
    folder = of_two(tmp_path, random_model)
    (folder / "scores.jsonl.progress").write_text("garbage\n")
    assert score_teacher_contexts.main(arguments(folder, random_model)) == 2
    assert "scores.jsonl.progress: is damaged" in capsys.readouterr().err
    assert score_teacher_contexts.main(arguments(folder, random_model, "--device", "cuda:7")) == 2 or torch.cuda.is_available()
    assert "torch sees no GPU here" in capsys.readouterr().err or torch.cuda.is_available()
