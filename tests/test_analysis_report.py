"""The whole analysis by one command, on a run as users have it; which rollouts, weights and teachers go together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import report, runs
from analysis.rows import read_jsonl
from tests.tools import in_process, overrides
from trainer import config
from trainer.errors import UserError

pytestmark = pytest.mark.slow
HEADING = "A solution of another attempt, for this test:"


@pytest.fixture(scope="module")
def home(once, guessing_model, chains_data, tmp_path_factory):
    """A folder in which a run of two steps validated before the first and after it, and saved after it; since moved."""

    def make(folder: Path) -> None:
        places = {
            "default_local_dir": "checkpoints",
            "rollout_data_dir": "rollouts",
            "validation_data_dir": "validation",
            "log_dir": "logs",
        }
        more = [f"trainer.{key}={folder}/{name}/tried" for key, name in places.items()]
        more += ["trainer.experiment_name=tried", "actor_rollout_ref.rollout.val_kwargs.n=8"]
        more += [f"actor_rollout_ref.actor.self_distillation.solution_template='{HEADING} {{successful_previous_attempt}}'"]
        with in_process(config.load("sdpo", overrides(guessing_model, chains_data, folder, *more, batch=4, n=8))) as loop:
            loop.validate()
            loop.train_step()
            loop.save()
            loop.validate()
            loop.train_step()

    return shutil.copytree(once("report_home", make), tmp_path_factory.mktemp("home"), dirs_exist_ok=True)


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def run(here):
    return runs.find_run("tried")


def actor_with(run: runs.Run, *, rate: float = 0.05, loss: str = "sdpo", fixed: str | None = None) -> runs.Run:
    """The run with another teacher."""
    every = run.config.actor_rollout_ref
    distill = replace(every.actor.self_distillation, teacher_update_rate=rate)
    actor = replace(every.actor, self_distillation=distill, policy_loss=replace(every.actor.policy_loss, loss_mode=loss))
    ref = replace(every.ref, model=replace(every.ref.model, path=fixed))
    return replace(run, config=replace(run.config, actor_rollout_ref=replace(every, actor=actor, ref=ref)))


def test_steps_that_can_be_are_analysed_and_compared(here, capsys):
    assert report.main(["tried", "--conditions", "base", "solutoin"]) == 2
    assert "--conditions solutoin: known are" in capsys.readouterr().err and not (here / "analysis_outputs").exists()
    assert report.main(["tried", "--num-bootstrap", "50"]) == 0
    made = here / "analysis_outputs" / "tried"
    text = (made / "report.md").read_text()
    assert sorted(folder.name for folder in made.glob("step*")) == ["step0", "step1"]
    teachers = ("the same weights as the student", "the EMA teacher of the same checkpoint")
    for step, weights, teacher in zip((0, 1), ("guessing_model", "global_step_1"), teachers, strict=True):
        result = json.loads((made / f"step{step}" / "metrics.json").read_text())
        entries = result["sample_sets"]["mixed_paired"]["conditions"]
        assert list(entries) == list(report.CONDITIONS) and result["num_bootstrap"] == 50
        assert result["student"] == ("student" if step else "base")
        (of_step,) = [line for line in text.splitlines() if line.startswith(f"- step {step}: ")]
        assert weights in of_step and teacher in of_step and f"validation/tried/{step}.jsonl" in of_step
        for name, entry in entries.items():
            low, high = entry["success_auc_ci"]
            cell = f"{entry['success_auc']:.3f} [{low:.3f}, {high:.3f}] ({entry['success_auc_count']})"
            assert any(cell in line.split(" | ")[step + 1] for line in text.splitlines() if line.startswith(f"| `{name}`"))
        # the model a run began with knows nothing of the run, and is shown what the run's teacher was
        rows = [row for _, row in read_jsonl(made / f"step{step}" / "context_variants.jsonl") if row["sections_used"]["solution"]]
        assert rows and all(HEADING in row["assembled_context_text"] for row in rows)
        assert (made / f"step{step}" / "plots" / "teacher_metrics_main.png").is_file()
    assert "| 1S to 2S | teacher | " in text and "| 2S to 2S+1F | advantage | " in text and "| base to 1S | " in text
    assert (made / "auc_by_step.svg").read_text().count("step 1") == 2 and (made / "auc_by_step.png").is_file()

    # once more, a step alone: nothing is scored again, by name or by folder; what would be other is refused
    before = (made / "step1" / "scores.jsonl").stat().st_mtime_ns
    assert report.main(["checkpoints/tried", "--num-bootstrap", "50", "--steps", "1"]) == 0
    assert "scores.jsonl: is there" in capsys.readouterr().out and (made / "step1" / "scores.jsonl").stat().st_mtime_ns == before
    distill = "actor_rollout_ref.actor.self_distillation"
    for flags, other in (
        (["--conditions", "base", "solution"], "conditions"),
        (["--set", f"{distill}.max_reprompt_len=200"], "self_distillation"),
        (["--dtype", "bfloat16"], "dtype"),
    ):
        assert report.main(["tried", *flags]) == 2
        assert f"step0: its scores were made of other {other}. Give another --out" in capsys.readouterr().err
    assert report.main(["tried", "--training", "--out", str(made)]) == 2
    assert "holds the report of tried's validation, not of tried's training" in capsys.readouterr().err

    # weights that have gone since: what they scored is kept, and what they did not is said
    shutil.copytree(here / "checkpoints", here / "kept")
    shutil.rmtree(here / "checkpoints" / "tried" / "global_step_1")
    assert report.main(["tried", "--num-bootstrap", "50"]) == 0
    assert "| condition | step 0 | step 1 |" in (made / "report.md").read_text()
    assert report.main(["tried", "--out", "anew", "--conditions", "base", "solution", "--num-bootstrap", "9"]) == 0
    text = (here / "anew" / "report.md").read_text()
    assert "| condition | step 0 |\n" in text and "- left out: step 1, no weights after 1 steps" in text
    shutil.rmtree(here / "checkpoints")
    (here / "kept").rename(here / "checkpoints")


def test_the_rollouts_of_training(here):
    flags = ["--training", "--steps", "2", "--conditions", "base", "solution", "--num-bootstrap", "9"]
    assert report.main(["tried", *flags]) == 0
    made = here / "analysis_outputs" / "tried-training"
    text = (made / "report.md").read_text()
    assert "rollouts/tried/2.jsonl" in text and "global_step_1" in text and "| base to 1S | advantage |" in text
    assert sorted(folder.name for folder in made.glob("step*")) == ["step2"]


def test_a_fixed_teacher_scores_itself(here, random_model):
    teacher = ["actor_rollout_ref.actor.self_distillation.teacher_update_rate=0", f"actor_rollout_ref.ref.model.path={random_model}"]
    flags = ["--steps", "0", "--conditions", "base", "solution", "--num-bootstrap", "9", "--out", "fixed", "--set", *teacher]
    assert report.main(["tried", *flags]) == 0
    (line,) = [line for line in (here / "fixed" / "report.md").read_text().splitlines() if line.startswith("- step 0: ")]
    assert "guessing_model`; teacher: the run's fixed teacher" in line and "not the student's" in line
    by = {row["teacher_model"] for _, row in read_jsonl(here / "fixed" / "step0" / "scores.jsonl")}
    assert by == {str(random_model)}


def test_which_weights_sampled_a_step(run, here):
    def pairs(run: runs.Run, *, training: bool) -> dict[int, str]:
        found, _ = report.stages(run, None, here / "out", training=training)
        return {stage.step: Path(stage.student.path).parent.name if stage.trained else "first" for stage in found}

    assert pairs(run, training=False) == {0: "first", 1: "global_step_1"}
    assert pairs(run, training=True) == {1: "first", 2: "global_step_1"}
    ahead = runs.find_run("tried", ["trainer.rollout_overlap=1", "actor_rollout_ref.rollout.n_gpus=1"])
    assert pairs(ahead, training=True) == {1: "first", 2: "first"}
    with pytest.raises(UserError, match=r"left out: step 7, not dumped\. .*validation.tried has the rollouts of step 0-1; .* after 0-1\."):
        report.stages(run, [1, 7], here / "out", training=False)
    with pytest.raises(UserError, match=r"nothing to analyse\. .*nowhere is no folder"):
        report.stages(replace(run, validation=here / "nowhere"), None, here / "out", training=False)


def test_one_response_a_prompt_is_refused_before_anything_is_made(run, here, tmp_path):
    rows = [row for _, row in read_jsonl(run.validation / "0.jsonl") if row["rollout_index"] == 0]
    (tmp_path / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (stage,), _ = report.stages(replace(run, validation=tmp_path), [0], tmp_path / "out", training=False)
    with pytest.raises(UserError, match=r"has 1 response a prompt.*EVAL_N"):
        report.claim(stage, run, None)
    assert not (tmp_path / "out").exists()


def test_who_the_teacher_is(run, guessing_model, random_model):
    first, trained = run.student(0), run.student(1)
    assert runs.teacher_of(run, trained).weights == "ema" and runs.teacher_of(run, first).weights == "student"
    fixed = runs.teacher_of(actor_with(run, rate=0.0, fixed=str(random_model)), replace(trained, averaged=False))
    assert fixed.reader.path == str(random_model) and "the run's fixed teacher" in fixed.what
    frozen = runs.teacher_of(actor_with(run, rate=0.0), replace(trained, averaged=False))
    assert frozen.reader.path == str(guessing_model) and "the run's fixed teacher" in frozen.what
    none = runs.teacher_of(actor_with(run, loss="vanilla"), replace(trained, averaged=False))
    assert none.reader.path == trained.path and "this run had no teacher" in none.what


def test_a_run_that_begins_with_a_checkpoint_has_no_average_yet(run):
    model = replace(run.config.actor_rollout_ref.model, path=str(run.checkpoints / "global_step_1" / "huggingface"))
    after = replace(run, config=replace(run.config, actor_rollout_ref=replace(run.config.actor_rollout_ref, model=model)))
    assert after.student(1).averaged and not after.student(0).averaged
    assert runs.teacher_of(after, after.student(0)).weights == "student"


@pytest.mark.parametrize("called", ["tried.old-1", "checkpoints/tried.old-1"])
def test_a_run_set_aside_is_not_the_one_that_has_its_name_now(here, called):
    for kind in ("checkpoints", "rollouts", "validation", "logs"):
        shutil.copytree(here / kind / "tried", here / kind / "tried.old-1", dirs_exist_ok=True)
    found = runs.find_run(called)
    assert found.name == "tried.old-1"
    assert {path.name for path in (found.checkpoints, found.rollouts, found.validation)} == {"tried.old-1"}
    now = runs.find_run("tried")
    assert {path.name for path in (now.checkpoints, now.rollouts, now.validation)} == {"tried"}
