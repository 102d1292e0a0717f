"""The whole analysis by one command, on a run as users have it."""

import json

import pytest

from analysis import report
from tests.tools import in_process, overrides
from trainer import config
from trainer.files import read_jsonl

pytestmark = pytest.mark.slow
HEADING = "A solution of another attempt, for this test:"


@pytest.fixture(scope="module")
def home(guessing_model, chains_data, tmp_path_factory):
    """A folder in which a run of two steps validated before the first and after it, and saved after it."""
    folder = tmp_path_factory.mktemp("home")
    places = {"default_local_dir": "checkpoints", "rollout_data_dir": "rollouts", "validation_data_dir": "validation", "log_dir": "logs"}
    more = [f"trainer.{key}={folder}/{name}/tried" for key, name in places.items()]
    more += [
        "trainer.experiment_name=tried",
        "actor_rollout_ref.rollout.val_kwargs.n=8",
        "actor_rollout_ref.rollout.val_kwargs.do_sample=True",
    ]
    more += [f"actor_rollout_ref.actor.self_distillation.solution_template='{HEADING} {{successful_previous_attempt}}'"]
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, folder, *more, batch=4, n=8))) as loop:
        loop.validate()
        loop.train_step()
        loop.save()
        loop.validate()
        loop.train_step()
    return folder


@pytest.fixture(scope="module")
def made(home):
    """The report of both validations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert report.main(["tried", "--num-bootstrap", "50"]) == 0
    return home / "analysis_outputs" / "tried"


def test_steps_that_can_be_are_analysed_and_compared(made, home):
    text = (made / "report.md").read_text()
    assert sorted(folder.name for folder in made.glob("step*")) == ["step0", "step1"]
    for step, weights, teacher in ((0, "guessing_model", "the teacher has the student's weights"), (1, "global_step_1", "its EMA teacher")):
        result = json.loads((made / f"step{step}" / "metrics.json").read_text())
        entries = result["sample_sets"]["mixed_paired"]["conditions"]
        assert list(entries) == list(report.CONDITIONS) and result["num_bootstrap"] == 50
        assert result["student"] == ("student" if step else "base")
        line = next(line for line in text.splitlines() if line.startswith(f"- step {step}: "))
        assert weights in line and teacher in line and f"validation/tried/{step}.jsonl" in line
        for name, entry in entries.items():
            low, high = entry["success_auc_ci"]
            cell = f"{entry['success_auc']:.3f} [{low:.3f}, {high:.3f}] ({entry['success_auc_count']})"
            (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`") and cell in line.split(" | ")[step + 1]][:1]
            assert row
        assert (made / f"step{step}" / "plots" / "teacher_metrics_main.png").is_file()
    assert "| 1S to 2S | teacher | " in text and "| 2S to 2S+1F | advantage | " in text and "| base to 1S | " in text
    assert (made / "auc_by_step.svg").read_text().count("step 1") == 2 and (made / "auc_by_step.png").is_file()


def test_the_model_a_run_began_with_reads_as_the_run_does(made):
    for step in (0, 1):
        shown = [row for _, row in read_jsonl_at(made / f"step{step}" / "context_variants.jsonl") if row["sections_used"]["solution"]]
        assert shown and all(HEADING in row["assembled_context_text"] for row in shown)


def read_jsonl_at(path):
    return enumerate(read_jsonl(path))


def test_what_is_made_is_kept_and_what_is_other_is_refused(made, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    before = (made / "step1" / "scores.jsonl").stat().st_mtime_ns
    assert report.main(["tried", "--num-bootstrap", "50"]) == 0
    assert "scores.jsonl: is there" in capsys.readouterr().out and (made / "step1" / "scores.jsonl").stat().st_mtime_ns == before
    assert report.main(["tried", "--conditions", "base", "solution"]) == 2
    assert "step0: was made of other conditions" in capsys.readouterr().err
    assert report.main(["tried", "--set", "actor_rollout_ref.actor.self_distillation.max_reprompt_len=200"]) == 2
    assert "step0: was made of other self_distillation" in capsys.readouterr().err


def test_training_s_own_rollouts_and_steps_that_are_not_there(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    assert report.main(["tried", "--training", "--steps", "2", "--out", "of_training", "--conditions", "base", "solution"]) == 0
    text = (home / "of_training" / "report.md").read_text()
    assert "rollouts/tried/2.jsonl" in text and "global_step_1" in text and "| base to 1S | advantage |" in text
    assert not (home / "of_training" / "step1").exists()
    assert report.main(["tried", "--steps", "1", "7"]) == 2
    said = capsys.readouterr().err
    assert "tried: of step 7 there are not both" in said and "the rollouts of 0-1," in said and "the weights after 0-1." in said
    assert report.main(["other"]) == 2
    assert "other: no run of this name (logs/other/config.yaml)" in capsys.readouterr().err
