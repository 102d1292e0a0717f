"""Pre-flight: every verdict by hand, masks against the verifiers themselves, the leak share where it is known, scores against
plain transformers, and the command as a user runs it, next to a run that really trains."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM

from analysis.preflight import measure, page, teacher, verdicts
from analysis.preflight.__main__ import main
from analysis.preflight.answers import MASKS, mask_of
from analysis.preflight.measure import Step
from tests.tools import ROOT, group, in_process, overrides
from trainer import config, rewards
from trainer.files import read_jsonl
from trainer.models import load_chat
from trainer.types import Batch, Outcome, Prompt, Rollout
from trainer.workers.base import Report

# ---- verdicts ----

CASES = {  # (figure, grade): a value that gets the grade, one that just does not, what is said
    ("all_fail", "care"): (0.7, 0.5, "70% of groups are all-fail"),
    ("all_fail", "stop"): (0.91, 0.9, "91% of groups are all-fail"),
    ("all_pass", "care"): (0.51, 0.5, "51% of groups are all-pass"),
    ("all_pass", "stop"): (0.95, 0.9, "95% of groups are all-pass"),
    ("both_verdicts", "care"): (0.2, 0.25, "only 20% of groups hold a success and a failure"),
    ("lone_success", "care"): (0.4, 0.3, "40% of groups have one success only"),
    ("truncated", "care"): (0.2, 0.1, "20% of responses are cut"),
    ("truncated", "stop"): (0.6, 0.5, "60% of responses are cut"),
    ("unreadable", "care"): (0.4, 0.3, "40% of responses hold no answer"),
    ("verifier_errors", "care"): (0.012, 0.01, "failed on 1.2% of responses"),
    ("verifier_errors", "stop"): (0.3, 0.2, "failed on 30% of responses"),
    ("repetition", "care"): (0.3, 0.2, "30% of 4-grams"),
    ("too_long", "care"): (0.11, 0.1, "11% of training prompts are left out"),
    ("prompts_cut", "care"): (0.3, 0.25, "30% of teacher prompts had peers cut"),
    ("teacher_groups", "care"): (9, 10, "only 9 groups"),
    ("auc_low", "care"): (0.45, 0.5, "begins at 0.45"),
    ("auc_high", "stop"): (0.49, 0.5, "ends at 0.49"),
    ("leak_share", "care"): (0.6, 0.5, "60% of the teacher's advantage is the peers' final answers"),
    ("memory_share", "care"): (0.95, 0.9, "95% of the memory there is"),
    ("memory_above_plan", "care"): (0.3, 0.25, "30% more memory than predicted"),
    ("verify_share", "care"): (0.4, 0.3, "40% of a step is waiting"),
}
NOTHING = {figure: None for figure, _ in CASES}


@pytest.mark.parametrize(("figure", "grade"), CASES)
def test_each_threshold_gives_its_verdict(figure, grade):
    bad, good, says = CASES[figure, grade]
    (found,) = verdicts.judge(NOTHING | {figure: bad})
    assert (found.figure, found.grade, found.value) == (figure, grade, bad)
    assert says in found.says
    assert verdicts.overall([found]) == grade
    assert grade not in [verdict.grade for verdict in verdicts.judge(NOTHING | {figure: good})]


def test_every_threshold_has_a_case_and_nothing_says_nothing():
    assert {(t.figure, t.grade) for t in verdicts.THRESHOLDS} == set(CASES)
    assert verdicts.judge(NOTHING) == []
    assert verdicts.overall([]) == "go"


def test_the_gravest_comes_first_and_one_fact_is_said_once():
    found = verdicts.judge(NOTHING | {"truncated": 0.2, "all_fail": 0.95, "auc_low": 0.1, "auc_high": 0.2})
    assert [(v.figure, v.grade) for v in found] == [("all_fail", "stop"), ("auc_high", "stop"), ("truncated", "care")]
    assert verdicts.overall(found) == "stop"


def test_the_page_shows_the_thresholds_as_they_are():
    assert verdicts.markdown() in (ROOT / "docs" / "preflight.md").read_text()


def test_advice_names_keys_that_exist():
    leaves = {part for key in config.flat(config.load("sdpo")) for part in key.split(".")}
    words = {word.strip("().,;=") for t in verdicts.THRESHOLDS for word in t.advice.replace("=", " ").split() if "_" in word}
    named = {part for word in words for part in word.split(".") if not part.startswith("include_")}
    assert len(named) > 10
    assert named <= leaves


# ---- masks ----

ANSWERS = {
    "sciknoweval": [("<answer>{}</answer>", "ABD")],
    "gpqa": [(r"\boxed{{{}}}", "ABD"), (r"\boxed{{\text{{{}}}}}", "AC"), (r"\fbox{{({})}}", "B")],
    "mmlu_pro": [
        ("the answer is ({})", "ABJ"),
        ("Answer: {}", "AB"),
        ("**The answer is:** **({})**.", "CD"),
        (r"the answer is \boxed{{{}}}", "E"),
    ],
    "math500": [(r"\boxed{{{}}}", ["4", r"\frac{1}{2}", r"\{1, 2\}", r"x \in \mathbb{R}"])],
    "tiny_chains": [("Answer:{}", "0179")],
}
WORDS = st.lists(st.sampled_from(["so", "x = 4.", "{", "}", "\n", "<think>", "</think>", "the", "B", "(", r"\frac{1}{2}", "5"]), max_size=6)


@pytest.mark.parametrize("source", ANSWERS)
@given(data=st.data())
def test_the_verifier_reads_no_answer_in_what_is_left(source, data):
    parts, told = [], data.draw(st.integers(1, 3))
    for _ in range(told):
        form, answers = data.draw(st.sampled_from(ANSWERS[source]))
        parts += [*data.draw(WORDS), form.format(data.draw(st.sampled_from(list(answers))))]
    text, mask = " ".join([*parts, *data.draw(WORDS)]), MASKS[rewards.entry_of(source)]
    gold = {"math500": "4", "tiny_chains": "1"}.get(source, "B")
    left = mask(text)
    assert rewards.verify(source, left, gold).outcome == Outcome.FORMAT
    assert mask(left) == left
    assert left != text


def test_masks_take_the_answer_and_nothing_else():
    taken = {
        ("math500", r"so 4: \boxed{\frac{1}{2}}, or \fbox {3} end"): r"so 4: \boxed{}, or \fbox {} end",
        ("gpqa", r"never closed: \boxed{A"): r"never closed: \boxed{",
        ("sciknoweval", "A is right. <answer> A </answer>"): "A is right. <answer></answer>",
        ("mmlu_pro", "Option B fails, so the answer is (C)."): "Option B fails, so the answer is (...).",
        ("tiny_chains", "1+1=2 Answer:23"): "1+1=2 Answer:",
    }
    for (source, text), left in taken.items():
        assert MASKS[rewards.entry_of(source)](text) == left
    for mask in MASKS.values():
        assert mask("1 + 1 = 2, since B and {x} hold") == "1 + 1 = 2, since B and {x} hold"


def test_every_verifier_has_a_mask_or_no_final_answer():
    assert set(rewards.VERIFIERS.values()) - MASKS.keys() == {"tool_use:verify", "code:exact", "code:tolerant"}
    cfg = config.load("sdpo")
    assert mask_of("tooluse", cfg) is None
    own = dataclasses.replace(cfg.custom_reward_function, path="reward.py", name="score")
    assert mask_of("gpqa", dataclasses.replace(cfg, custom_reward_function=own)) is None


# ---- the leak share ----


def step_of(chat, *scores, source="tiny_chains") -> Step:
    """A step whose successes end in Answer:2 and whose failures in Answer:1; rollouts differ in their work."""
    groups = []
    for g, some in enumerate(scores):
        messages = [{"role": "user", "content": f"{g}+1"}]
        prompt = Prompt(f"u{g}", source, messages, token_ids=chat.prompt_ids(messages))
        texts = [f"{g}+{i}={i}Answer:{2 if score else 1}" for i, score in enumerate(some)]
        made = group(some, texts=texts, prompt=prompt)
        rollouts = [Rollout(text, chat.encode(text), np.zeros(len(chat.encode(text)), np.float32)) for text in texts]
        groups.append(dataclasses.replace(made, rollouts=rollouts))
    return Step(1, groups, Batch([]), Report(), {})


def settings(model):
    return config.load("sdpo", overrides(model, "x", "x"))


def student(samples):
    return [np.zeros(len(s.response_ids), np.float32) for s in samples]


def constructed(chat, cfg, teacher_knows, *scores, **kwargs) -> dict:
    """The report on a teacher that lifts successes by 1 nat per token where it `teacher_knows` from its prompt's text."""
    step = step_of(chat, *scores, **kwargs)
    asked = teacher.questions(step, cfg, chat)

    def teach(samples):
        passed = [asked[s.group].success[s.index] for s in samples]
        texts = [chat.tokenizer.decode(s.context_ids) for s in samples]
        return [
            np.full(len(s.response_ids), float(p and teacher_knows(t)), np.float32) for s, p, t in zip(samples, passed, texts, strict=True)
        ]

    return teacher.report(teacher.scores(asked, student, teach), cfg)


MIXED = [(1, 1, 0, 0), (1, 0, 1, 1), (0, 1, 1, 0)]


@pytest.mark.parametrize(("teacher_knows", "share"), [(lambda text: "Answer:2" in text, 1), (lambda text: "=" in text, 0)])
def test_leak_share_where_answers_are_everything_and_nothing(random_model, teacher_knows, share):
    chat, cfg = load_chat(str(random_model), {}), settings(random_model)
    leak = constructed(chat, cfg, teacher_knows, *MIXED)["leak"]
    assert (leak["share"], leak["interval"]) == (share, [share, share])
    assert (leak["advantage"], leak["masked"], leak["groups"]) == (1, 1 - share, 3)
    assert leak["answers"] > 0 and leak["why"] is None


def test_leak_share_is_half_where_half_stays():
    share, low, high = teacher.leak_share(np.array([1.0, 2, 3, 2]), np.array([0.5, 1, 1.5, 1]), seed=0)
    assert (share, low, high) == pytest.approx((0.5, 0.5, 0.5))
    assert teacher.leak_share(np.array([1.0, -1, 1, -1]), np.zeros(4), seed=0) == (None, None, None)
    assert teacher.leak_share(np.array([1.0, 3]), np.array([2.0, 6]), seed=0)[0] == pytest.approx(-1)  # masking may help: not clamped


def test_leak_share_is_not_a_number_where_there_is_none(random_model):
    chat, cfg = load_chat(str(random_model), {}), settings(random_model)
    code = constructed(chat, cfg, lambda text: True, *MIXED, source="code")["leak"]
    assert code["share"] is None and code["without_answer"] == ["code"] and "final answer" in code["why"]
    one = constructed(chat, cfg, lambda text: True, MIXED[0])["leak"]
    assert one["share"] is None and "fewer than two" in one["why"]
    blind = constructed(chat, cfg, lambda text: False, *MIXED)["leak"]
    assert blind["share"] is None and "no advantage" in blind["why"]


# ---- contexts and AUC ----


def test_auc_by_context_of_a_teacher_that_copies_what_it_sees(random_model):
    """A teacher that is right from one success on and blind without; who is shown nothing is left out."""
    chat, cfg = load_chat(str(random_model), {}), settings(random_model)
    auc = constructed(chat, cfg, lambda text: "Answer:2" in text, *MIXED, (1, 0, 0, 0), (0, 0, 0, 0))["auc"]
    found = {name: (kinds["gap"]["mean"], kinds["gap"]["groups"]) for name, kinds in auc.items()}
    assert found == {
        "base": (0.5, 4),
        "1S": (1, 3),  # the lone success is shown nothing
        "2S": (1, 3),
        "1F": (0.5, 3),  # so is a lone failure
        "2S+1F": ((1 + 1 + 1 + 0.5) / 4, 4),
        "own": ((1 + 1 + 1 + 0.5) / 4, 4),
    }


def test_no_mixed_group_leaves_auc_undefined(random_model):
    chat, cfg = load_chat(str(random_model), {}), settings(random_model)
    found = constructed(chat, cfg, lambda text: True, (0, 0), (1, 1))
    assert found["groups"] == 0
    assert all(kind["mean"] is None and kind["interval"] == [None, None] for kinds in found["auc"].values() for kind in kinds.values())
    assert found["leak"]["share"] is None
    assert all(pair["mean"] is None for pair in found["pairs"].values())


def test_errors_of_the_verifier_are_neither_success_nor_failure(random_model):
    chat, cfg = load_chat(str(random_model), {}), settings(random_model)
    step = step_of(chat, (1, 1, 0))
    (mixed,) = step.groups
    failed = [*mixed.verdicts[:2], dataclasses.replace(mixed.verdicts[2], outcome=Outcome.ERROR)]
    assert len(teacher.questions(step, cfg, chat)) == 1
    assert teacher.questions(dataclasses.replace(step, groups=[dataclasses.replace(mixed, verdicts=failed)]), cfg, chat) == []
    assert measure.held(mixed) == {True, False} and measure.held(dataclasses.replace(mixed, verdicts=failed)) == {True}


# ---- time ----


def timed(groups: int, rollout: float, update: float) -> Step:
    seconds = {"rollout": rollout, "verify": 1.0, "peers": 1.0, "update": update, "sync": 0.5}
    return Step(1, [group([1])] * groups, Batch([]), Report(seconds={"student": update / 2}), seconds)


@pytest.mark.parametrize(
    ("steps", "overlap", "used", "scale", "step"),
    [
        ([timed(4, 50, 50), timed(4, 2, 3), timed(4, 4, 5), timed(4, 90, 4), timed(2, 9, 9)], 0, 3, 1, 4 + 1 + 1 + 4 + 0.5),
        ([timed(4, 2, 3), timed(2, 9, 9)], 0, 1, 1, 2 + 1 + 1 + 3 + 0.5),
        ([timed(2, 2, 3)], 0, 1, 2, 2 * (2 + 1 + 1 + 3 + 0.5)),
        ([timed(4, 2, 3)], 1, 1, 1, 1 + 3 + 0.5),
        ([timed(4, 5, 3)], 1, 1, 1, 5 + 1 + 0.5),
    ],
)
def test_time_of_a_step(steps, overlap, used, scale, step):
    """Whole steps but the first, a step held up does not count, none whole is scaled; what overlaps takes the longer of both."""
    trainer = SimpleNamespace(rollout_overlap=overlap)
    loop = SimpleNamespace(order=SimpleNamespace(batch=4), config=SimpleNamespace(trainer=trainer), total_steps=3600)
    found = measure.step_time(loop, steps)
    assert (found["steps_measured"], found["scaled_by"], found["step"]) == (used, scale, step)
    assert found["hours"] == step
    assert found["update"]["student"] == found["seconds"]["update"] / 2


# ---- with real models ----


@pytest.fixture(scope="module")
def walked(guessing_model, chains_data, tmp_path_factory):
    """Three steps of a run, and the weights before and after."""
    out = tmp_path_factory.mktemp("walked")
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, out))) as loop:
        loop.workers.sync()
        before = {name: tensor.clone() for name, tensor in loop.workers.actor.weights(torch.float32).items()}
        steps = measure.walk(loop, 10)
        after = loop.workers.actor.weights(torch.float32)
        return steps, before, after


def test_a_walk_takes_the_prompts_asked_for_and_changes_no_weight(walked):
    steps, before, after = walked
    assert [len(step.groups) for step in steps] == [4, 4, 2]
    assert len({g.prompt.uid for step in steps for g in step.groups}) == 10
    assert any(step.report.losses for step in steps)
    assert all(torch.equal(before[name], after[name]) for name in before)


def logp(model, context, response) -> float:
    with torch.no_grad():
        ids = torch.from_numpy(np.concatenate([context, response]).astype(np.int64))[None]
        scores = model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
    return float(scores[torch.arange(len(response)), ids[0, len(context) :]].mean())


def test_scores_are_those_of_plain_transformers(walked, guessing_model, random_model, chains_data, tmp_path):
    steps = walked[0]
    other = (f"actor_rollout_ref.ref.model.path={random_model}", "actor_rollout_ref.actor.self_distillation.teacher_update_rate=0")
    models = {path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (guessing_model, random_model)}
    for more, second in (((), guessing_model), (other, random_model)):
        with in_process(config.load("sdpo", overrides(guessing_model, chains_data, tmp_path / "out", *more))) as loop:
            read = teacher.read(loop, steps[:1])
        assert read
        for one in read[:2]:
            for name, prompts in one.asked.prompts.items():
                for i, prompt in list(enumerate(prompts))[:3]:
                    if prompt is None:
                        assert np.isnan(one.gap[name][i])
                        continue
                    group_, response = one.asked.group, one.asked.group.rollouts[i].token_ids
                    said = logp(models[second], prompt, response)
                    assert one.teacher[name][i] == pytest.approx(said, abs=1e-4)
                    assert one.gap[name][i] == pytest.approx(
                        said - logp(models[guessing_model], group_.prompt.token_ids, response), abs=1e-4
                    )
        if second == guessing_model:  # the same model behind the same prompt: nothing, exactly
            assert all((one.gap["base"] == 0).all() for one in read)


class Page(HTMLParser):
    """Checks that tags close in order; keeps text and attributes."""

    VOID = ("meta", "circle", "line")

    def __init__(self):
        super().__init__()
        self.open, self.text, self.attributes = [], "", []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(path) -> str:
    """Check that a page is whole and names nothing outside itself; return its text."""
    source, read = path.read_text(), Page()
    read.feed(source)
    assert read.open == []
    assert not {"src", "href"} & {name for name, _ in read.attributes}
    assert not any(word in source for word in ("http:", "https:", "url(", "@import", "<script"))
    assert "prefers-color-scheme: dark" in source
    return read.text


def preflight(out, *arguments) -> tuple[dict, str, str]:
    """Run the command; return its numbers, what it printed, and its page's text, blanks made one."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*arguments, "--out", str(out / "page.html"), "--in-process"]) == 0
    return json.loads((out / "page.json").read_text()), *(" ".join(t.split()) for t in (said.getvalue(), check_page(out / "page.html")))


@pytest.fixture(scope="module")
def run_of(guessing_model, chains_data, tmp_path_factory):
    """The arguments of a run, and its folder."""
    out = tmp_path_factory.mktemp("flown")
    return overrides(guessing_model, chains_data, out / "run", "trainer.logger=[console,tensorboard]"), out


@pytest.fixture(scope="module")
def flown(run_of):
    arguments, out = run_of
    return preflight(out, "--config-name", "sdpo", *arguments, "--prompts", "4")


def test_the_command_says_what_a_run_then_shows(flown, run_of):
    """Its first step is that of the run: same rollouts, groups, contexts and signal."""
    found = flown[0]
    with in_process(config.load("sdpo", [*run_of[0], "trainer.logger=[]", f"trainer.log_dir={run_of[1]}/real"])) as loop:
        loop.workers.sync()
        real = loop.train_step()
    assert found["base"]["mean@4"][0] == pytest.approx(real["critic/score/mean"])
    assert {f"health/groups_{kind}": share for kind, share in found["groups"].items()}.items() <= real.items()
    assert found["distilled"] == pytest.approx(real["health/distilled_fraction"])
    assert found["responses"]["tokens"]["mean"] == pytest.approx(real["response_length/mean"])
    assert found["teacher"]["budget"]["cut"] == real["self_distillation/teacher_prompt_length/clip_ratio"]
    assert found["teacher"]["budget"]["tokens"]["mean"] == pytest.approx(real["self_distillation/teacher_prompt_length/mean"])
    own = found["teacher"]["auc"]["own"]["gap"]
    assert own["groups"] == real["teacher/auc_groups"] > 0
    assert own["mean"] == pytest.approx(real["teacher/auc"])
    assert found["memory"]["predicted"] > 0 and found["time"]["step"] > 0


def test_terminal_and_page_say_the_verdicts(flown):
    found, said, shown = flown
    assert found["verdicts"]
    for text in (said, shown):
        assert verdicts.OVERALL[found["overall"]] in text
        for verdict in found["verdicts"]:
            assert verdict["says"] in text and verdict["advice"] in text
        assert "this run's own" in text


def test_names_are_shown_as_they_are(flown):
    odd = "<script>alert(1)</script>[bold]x[/]"
    found = {**flown[0], "run": {**flown[0]["run"], "experiment": odd, "notices": [odd], "arguments": [odd]}}
    console = Console(file=io.StringIO(), width=300)
    page.show(found, console)
    assert console.file.getvalue().count(odd) == 2
    source = page.html(found)
    assert "<script" not in source and source.count(escape(odd)) == 4


@pytest.mark.slow
def test_through_ray_as_a_user_types_it_the_numbers_are_the_same(flown, run_of, tmp_path):
    command = [sys.executable, "-m", "analysis.preflight", *run_of[0], "--prompts", "4", "--out", str(tmp_path / "page.html")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    check_page(tmp_path / "page.html")
    numbers = []
    for found in (flown[0], json.loads((tmp_path / "page.json").read_text())):
        assert found["run"].pop("arguments")
        timed = ("memory", "time", "verdicts", "overall")
        numbers.append({name: value for name, value in found.items() if name not in timed})
        numbers[-1]["figures"] = {k: v for k, v in found["figures"].items() if not k.startswith(("memory", "verify_share"))}
    assert numbers[0] == numbers[1]


def test_a_run_keeps_its_own_logs(flown, run_of):
    run = run_of[1] / "run"
    assert not (run / "logs").exists()  # or the run would find an earlier one's
    assert not (run / "logs-preflight" / "tensorboard").exists()
    assert read_jsonl(run / "logs-preflight" / "metrics.jsonl") == []
    assert [path.name for path in run.iterdir() if path.name != "rollouts"] == ["logs-preflight"]


def test_a_base_model_that_never_passes(random_model, chains_data, tmp_path):
    found, said, shown = preflight(tmp_path, *overrides(random_model, chains_data, tmp_path / "run"), "--prompts", "4")
    assert found["overall"] == "stop" and found["figures"]["all_fail"] == 1
    assert found["teacher"]["groups"] == 0 and found["figures"]["auc_low"] is None
    for text in (said, shown):
        assert "No group holds both a success and a failure: no AUC is defined." in text
        assert "100% of groups are all-fail" in text


def test_without_a_teacher_its_part_is_left_out(guessing_model, chains_data, tmp_path):
    plain = [o for o in overrides(guessing_model, chains_data, tmp_path / "run") if "self_distillation" not in o]
    found, said, shown = preflight(tmp_path, "--config-name", "baseline_grpo", *plain, "--prompts", "4")
    assert found["teacher"] is None and found["signal"] is None
    for text in (said, shown):
        assert "loss_mode=vanilla has no teacher" in text
    assert not any(v["figure"] in ("auc_low", "auc_high", "leak_share", "teacher_groups") for v in found["verdicts"])


def test_what_breaks_is_shown_and_no_page_is_left(guessing_model, chains_data, tmp_path, capsys, monkeypatch):
    def breaks(*_):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("analysis.preflight.measure.walk", breaks)
    arguments = [*overrides(guessing_model, chains_data, tmp_path / "run"), "--out", str(tmp_path / "page.html"), "--in-process"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "ZeroDivisionError: of all things" in said and "the pre-flight broke, see above" in said
    assert not (tmp_path / "page.html").exists()


def test_bad_input_is_told_before_anything_starts(guessing_model, chains_data, tmp_path, capsys):
    good = overrides(guessing_model, chains_data, tmp_path / "run")
    for arguments, says in (
        ([*good, "--prompts", "0"], "--prompts 0: must be at least 1"),
        ([*good, "--out", str(tmp_path / "x.json")], "must be a file for the page"),
        ([*good, "trainer.val_only=True"], "trainer.val_only=True"),
        ([*good, "data.trian_batch_size=4"], "did you mean 'data.train_batch_size'"),
    ):
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
