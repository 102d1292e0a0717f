"""Real SciKnowEval chemistry through preparation, a model made on the spot, the real verifier and two MOPD steps."""

import numpy as np
import pytest

from data import preprocess
from experiments.sciknoweval import make_model
from tests.tools import in_process, overrides
from trainer import config
from trainer.files import read_jsonl
from trainer.rewards import verify
from trainer.types import Outcome

pytestmark = pytest.mark.slow


def test_a_random_answer_is_in_the_format_and_passes_in_a_quarter_of_cases():
    rng = np.random.default_rng(0)
    outcomes = [verify("sciknoweval", make_model.respond(rng), "C").outcome for _ in range(400)]
    assert set(outcomes) == {Outcome.PASS, Outcome.FAIL}
    assert outcomes.count(Outcome.PASS) == pytest.approx(100, abs=25)


def test_two_steps_on_real_questions(shared_data, tmp_path):
    data = tmp_path / "chemistry"
    assert preprocess.main(["--data_source", str(shared_data / "sciknoweval" / "chemistry"), "--output_dir", str(data)]) == 0
    make_model.make(data, tmp_path / "model", steps=40)
    more = [
        "data.val_files=[]",
        "data.max_prompt_length=1024",
        "data.max_response_length=64",
        "actor_rollout_ref.actor.self_distillation.max_reprompt_len=2048",
        "trainer.total_training_steps=2",
    ]
    with in_process(config.load("sdpo", overrides(tmp_path / "model", data, tmp_path / "out", *more, batch=2, n=4))) as loop:
        loop.run()
    rows = read_jsonl(tmp_path / "out" / "rollouts" / "1.jsonl")
    assert len(rows) == 8 and {row["data_source"] for row in rows} == {"sciknoweval"}
    assert all("Given a question and four options" in row["input"] and row["gts"] in "ABCD" for row in rows)
    logged = read_jsonl(tmp_path / "out" / "logs" / "metrics.jsonl")
    assert all(row["rollout/logp_gap_max"] < 1e-4 and np.isfinite(row["actor/pg_loss"]) for row in logged)
    shown = [peer["rollout_index"] for row in rows for peer in row["peers"]]
    assert shown
