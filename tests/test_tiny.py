"""The tiny tasks: what is right, which errors are built in, and that their models and data are made once."""

import json
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.tiny import chains, compare, make, misconceptions
from experiments.tiny.report import Paired, collapsed
from trainer.rewards import verify
from trainer.seeds import generator
from trainer.types import Outcome


def test_chains_are_worked_from_left_to_right_modulo_ten():
    solution = chains.solve("3+5*2-7")
    assert solution == "3+5=8\n8*2=6\n6-7=9\nAnswer:9"
    assert verify("tiny_chains", solution, chains.answer(solution)).outcome == Outcome.PASS
    assert verify("tiny_chains", solution, "8").outcome == Outcome.FAIL


def test_the_annotator_slips_as_often_as_its_table_says_and_goes_on_from_it():
    who, rng = make.annotator(0), generator(0, "test")
    entry = max(who.slip, key=who.slip.get)
    slips = [who.step(*entry, rng) != chains.OPERATIONS[entry[0]](*entry[1:]) for _ in range(2000)]
    assert np.mean(slips) == pytest.approx(0.60, abs=0.04)
    for _ in range(50):
        lines = who.solve(chains.draw_problem(rng, 5), rng).split("\n")
        assert all(before[-1] == after[0] for before, after in pairwise(lines[:-1]))


def test_following_copies_only_lines_of_the_very_same_operation():
    rng, problem = generator(0, "follow"), "3+5*2-7"
    perfect = chains.Annotator(dict.fromkeys(make.annotator(0).slip, 0.0), make.annotator(0).wrong)
    shown = chains.solve(problem).replace("8*2=6", "8*2=1").replace("6-7=9", "1-7=4").replace("Answer:9", "Answer:4")
    seen = {slip: text for text, slip in (perfect.follow(problem, shown, rng) for _ in range(200))}
    assert set(seen) == {None, 0, 1, 2}
    assert seen[None] == shown  # every operation is there, so every line is taken over, the wrong one too
    assert "8*2" not in seen[0]  # after a forced slip the operations are others: worked out, not copied
    assert seen[0].split("\n")[1][4] == str(int(seen[0].split("\n")[1][0]) * 2 % 10)


def test_beliefs_are_of_three_kinds_and_wrong_only_for_misconceptions():
    held = make.beliefs(0)
    kinds = [held.kind[question] for question in misconceptions.QUESTIONS]
    assert {kind: kinds.count(kind) for kind in misconceptions.KINDS} == {"known": 90, "unsure": 76, "misconception": 90}
    for question in misconceptions.QUESTIONS:
        belief, truth = held.belief[question], misconceptions.LETTERS.index(held.truth[question])
        assert belief.sum() == pytest.approx(1)
        low, high = {"known": (0.85, 0.95), "unsure": (0.25, 0.5), "misconception": (0, 0.15)}[held.kind[question]]
        assert low <= belief[truth] <= high


def test_data_is_made_once_disjoint_and_remade_when_its_recipe_changes(tmp_path):
    folder = make.make_data("chains", tmp_path)
    problems = {split: pq.read_table(folder / f"{split}.parquet")["extra_info"].to_pylist() for split in ("train", "test")}
    texts = {split: {row["problem"] for row in rows} for split, rows in problems.items()}
    assert (len(texts["train"]), len(texts["test"])) == make.ROWS["chains"] and not texts["train"] & texts["test"]
    file = folder / "train.parquet"
    before = file.stat().st_mtime_ns
    make.make_data("chains", tmp_path)
    assert file.stat().st_mtime_ns == before
    make.make_data("chains", tmp_path, seed=1)
    assert file.stat().st_mtime_ns > before


def test_a_model_is_kept_by_its_recipe_and_half_made_ones_are_made_anew(tmp_path, monkeypatch):
    """The warm-up itself is the first minutes of the end-to-end run; here it is two steps."""
    from experiments.tiny import base

    made = []

    def short(*arguments):
        made.append(arguments)
        (arguments[0] / "model.safetensors").write_text("weights")

    monkeypatch.setattr(base, "warm_up", short)
    recipe = make.Recipe("chains")
    (tmp_path / "tiny-chains.partial").mkdir()
    (tmp_path / "tiny-chains").mkdir()  # without its recipe: cut off by hand
    folder = make.make_model(recipe, tmp_path)
    assert (folder / "model.safetensors").is_file() and len(made) == 1
    assert make.make_model(recipe, tmp_path) == folder and len(made) == 1
    (folder / "recipe.json").write_text(json.dumps({"fingerprint": "of another recipe"}))
    make.make_model(recipe, tmp_path)
    assert len(made) == 2
    assert not list(tmp_path.glob("*.partial"))


def test_a_warm_up_example_of_every_kind_is_rendered_as_the_teacher_reads(tmp_path):
    from experiments.tiny.tokenizer import make_tokenizer
    from trainer import config
    from trainer.models import load_chat

    distill = config.load("sdpo").actor_rollout_ref.actor.self_distillation
    make_tokenizer(tmp_path, [*"0123456789", "+-*=", "Answer:"], distill)
    chat = load_chat(str(tmp_path), {})
    draw, rng = make._examples(make.Recipe("chains"), chat, distill), np.random.default_rng(0)
    examples = [draw(rng) for _ in range(100)]
    prompts = [chat.decode(example.prompt) for example in examples]
    for title in ("Correct solution:", "Another successful solution:", "A known failed solution"):
        assert any(title in prompt for prompt in prompts)
    forced = [example for example in examples if not example.trained.all()]
    assert forced
    for example in forced:  # the one untrained token is the result of a line
        (position,) = np.flatnonzero(~example.trained)
        assert chat.decode(example.response[position - 1 : position]) == "=" and chat.decode(example.response[[position]]).isdigit()


def test_a_forced_letter_is_gone_on_from_and_not_trained_on():
    rng, held = np.random.default_rng(0), make.beliefs(0)
    cases = [make._draw_question(rng, 2, 1, held) for _ in range(300)]
    forced = [case for case in cases if case.untrained is not None]
    assert 60 < len(forced) < 120
    for case in cases:
        first, second = case.target.split("\n")
        assert first[-1] == second[-1]
        assert (case.target[-1] == case.successes[0][-1]) == (case.untrained is None)


def test_the_comparison_trains_its_grid_before_it_chooses():
    done = {}
    grid = list(compare.planned("chains", done))
    assert len(grid) == len(compare.METHODS) * len(compare.GRID) * len(compare.BASES) * len(compare.SELECTION_SEEDS)
    assert {run.part for run in grid} == {"selection"}
    for run in grid:
        done[run] = {"final": {"mean": 0.9 if run.lr == (5e-4 if run.method == "GRPO" else 1e-3) else 0.5}}
    finals = list(compare.planned("chains", done))
    assert {run.part for run in finals} == {"final"}
    assert {run.lr for run in finals if run.method == "GRPO"} == {5e-4}
    assert {run.seed for run in finals} & {run.seed for run in grid} == set()


def test_prompts_of_selection_and_final_are_disjoint(tmp_path):
    for task in compare.TASKS:
        problems = {}
        for part in ("selection", "final"):
            folder = tmp_path / task / part
            folder.mkdir(parents=True)
            compare.write_data(compare.Run(task, compare.DEFAULT, 1e-3, 0, 1, part), folder)
            table = pq.read_table(folder / "test.parquet")
            problems[part] = {row["problem"] for row in table["extra_info"].to_pylist()}
        assert len(problems["final"]) == 128
        assert not problems["selection"] & problems["final"]


def test_paired_differences_and_collapse():
    paired = Paired.of([0.9, 0.8, 0.7], [0.8, 0.6, 0.7])
    assert paired.mean == pytest.approx(0.1) and paired.wins == 2
    assert paired.error == pytest.approx(np.std([0.1, 0.2, 0.0], ddof=1) / np.sqrt(3))
    assert collapsed({"curve": [{"mean": 0.3}, {"mean": 0.9}, {"mean": 0.71}]})
    assert not collapsed({"curve": [{"mean": 0.3}, {"mean": 0.9}, {"mean": 0.73}]})
