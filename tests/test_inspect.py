"""The teacher's view: a page made as a user makes it, read in a real browser and compared with plain forward passes."""

import base64
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis import inspect as command
from analysis import page as pages
from analysis import runs, view
from analysis.scoring import load_average
from tests.tools import ROOT, group, in_process, overrides
from trainer import config, peers
from trainer.files import read_jsonl, write_jsonl
from trainer.models import build_lm, load_chat
from trainer.peers import Peer, PeerContext
from trainer.types import Prompt, Rollout

STEP = 2
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
QUIET += ("disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1240,900")


# ---- a run and its page


@pytest.fixture(scope="module")
def trained(guessing_model, chains_data, tmp_path_factory):
    """A run of two steps in a folder as users have it, with a checkpoint after the first; what the second step's teacher read."""
    folder = tmp_path_factory.mktemp("run")
    places = [
        f"trainer.{key}={folder}/{name}/tried" for key, name in (("default_local_dir", "checkpoints"), ("rollout_data_dir", "rollouts"))
    ]
    more = [*places, f"trainer.log_dir={folder}/logs/tried", "trainer.experiment_name=tried"]
    read = {}
    with in_process(config.load("sdpo", overrides(guessing_model, chains_data, folder, *more, batch=4, n=6))) as loop:
        loop.train_step()
        loop.save()
        prepare = loop.objective.prepare

        def listening(groups, chat, step):
            batch = prepare(groups, chat, step)
            read.update({(sample.group, sample.index): sample.context_ids for sample in batch.samples})
            return batch

        loop.objective.prepare = listening
        loop.train_step()
    return folder, read


@pytest.fixture(scope="module")
def html(trained):
    """The page, made by the command as a file: this folder must not stand before the standard library."""
    folder, _ = trained
    said = subprocess.run(
        [sys.executable, str(ROOT / "analysis" / "inspect.py"), "tried", "--step", str(STEP), "--out", "page.html"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert "global_step_1, which sampled these rollouts" in said.stdout and "EMA teacher of the same checkpoint" in said.stdout
    assert not list(folder.glob("*.partial"))
    return folder / "page.html"


@pytest.fixture(scope="module")
def loud(trained, guessing_model):
    """The folder of a teacher that every peer moves, the guessing model with disturbed attention; and the page with it."""
    folder, _ = trained
    shutil.copytree(guessing_model, folder / "loud")
    torch.manual_seed(0)
    lm = build_lm(str(guessing_model), attention="eager", dtype=torch.float32)
    for name, weight in lm.named_parameters():
        if "self_attn" in name:
            weight.data += 0.6 * torch.randn_like(weight)
    lm.save_pretrained(folder / "loud")
    out = folder / "loud.html"
    run, more = str(folder / "checkpoints" / "tried"), ["--teacher-model", str(folder / "loud"), "--out", str(out)]
    assert command.main([run, "--step", str(STEP), *more]) == 0
    return folder / "loud", out


# ---- the browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("no browser: the page of analysis.inspect is not tested (apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = found
    for flag in (*QUIET, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(driver))
    yield Browser(started)
    started.quit()


class Browser:
    """A page as a person uses it."""

    def __init__(self, driver) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())
        self.wait_for("0/0")

    def wait_for(self, shown: str) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 30).until(lambda driver: driver.execute_script("return document.body.dataset.shown") == shown)

    def find(self, css: str):
        from selenium.webdriver.common.by import By

        return self.driver.find_element(By.CSS_SELECTOR, css)

    def choose(self, g: int, r: int) -> None:
        self.find(f'#prompts [data-group="{g}"]').click()
        self.wait_for(f"{g}/0")
        self.find(f'#rollouts [data-rollout="{r}"]').click()
        self.wait_for(f"{g}/{r}")

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def hover(self, element) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def run(self, script: str):
        return self.driver.execute_script(script)

    def text(self, css: str) -> str:
        return self.run(f"return document.querySelector('{css}').textContent")

    def ratios(self) -> np.ndarray:
        return np.asarray(self.run("return [...document.querySelectorAll('.token')].map(t => Number(t.dataset.ratio))"))

    def colours(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)")

    def legend(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#legend span:not(.end)')].map(t => getComputedStyle(t).backgroundColor)")

    def top(self, who: str) -> list[list[str]]:
        return self.run(
            f"return [...document.querySelectorAll('#token [data-who={who}] tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
        )

    def complaints(self) -> list:
        return self.driver.get_log("browser")


# ---- definitions


@torch.no_grad()
def plain(lm, context, response) -> torch.Tensor:
    """Return log-probs [T, V] of one sequence by transformers' own attention."""
    ids = torch.tensor([[*context, *response]], dtype=torch.int64)
    return lm(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)


@pytest.fixture(scope="module")
def student(trained):
    """The model that sampled the second step, and its chat."""
    path = str(trained[0] / "checkpoints" / "tried" / "global_step_1" / "huggingface")
    return build_lm(path, attention="eager", dtype=torch.float32), load_chat(path, config.load("sdpo").data.apply_chat_template_kwargs)


@pytest.mark.slow
def test_the_page_shows_what_forward_passes_say(browser, loud, trained, student):
    (lm, chat), teacher = student, build_lm(str(loud[0]), attention="eager", dtype=torch.float32)
    rows = read_jsonl(trained[0] / "rollouts" / "tried" / f"{STEP}.jsonl")
    place = next(i for i, row in enumerate(rows) if len(row["peers"]) == 3)
    g, r, row = place // 6, place % 6, rows[place]
    response = row["response_ids"]
    targets = torch.tensor(response)[:, None]
    student_logp = plain(lm, chat.prompt_ids(row["messages"]), response)

    def teacher_logp():
        return plain(teacher, chat.encode(browser.text("#prompt")), response)

    def check():
        gap = (teacher_logp().gather(-1, targets) - student_logp.gather(-1, targets))[:, 0].numpy()
        np.testing.assert_allclose(browser.ratios(), gap, atol=0.01)
        assert browser.colours() == [browser.legend()[colour] for colour in pages.colour_of(browser.ratios())]

    def without(k):
        shown = [Peer(p["role"], p["rollout_index"], rows[g * 6 + p["rollout_index"]]["output"]) for p in row["peers"]]
        kept = [peer for place, peer in enumerate(shown) if place != k]
        context = PeerContext(r, tuple(p for p in kept if p.role != "failure"), tuple(p for p in kept if p.role == "failure"))
        distill = runs.find_run(str(trained[0] / "checkpoints" / "tried")).config.actor_rollout_ref.actor.self_distillation
        return peers.render(Prompt(row["uid"], "", row["messages"]), context, distill, chat).text

    browser.open(loud[1])
    browser.choose(g, r)
    assert chat.encode(browser.text("#prompt")).tolist() == trained[1][g, r].tolist(), "the teacher's prompt is not that of training"
    assert row["outcome"] in browser.text("#verdict")
    check()
    seen = {tuple(browser.ratios())}
    for k, peer in enumerate(row["peers"]):  # each off in turn, and on again
        whole = browser.colours(), browser.ratios().tolist(), browser.text("#prompt")
        box = browser.find(f'#parts input[data-part="{k}"]')
        box.click()
        assert not box.is_selected() and browser.text("#prompt") == without(k)
        check()
        seen.add(tuple(browser.ratios()))
        assert rows[g * 6 + peer["rollout_index"]]["output"] in browser.text(f'.part[data-part="{k}"] pre')
        browser.press(str(k + 1))
        assert box.is_selected() and (browser.colours(), browser.ratios().tolist(), browser.text("#prompt")) == whole
    assert len(seen) > len({rows[g * 6 + peer["rollout_index"]]["output"] for peer in row["peers"]})
    browser.press("0")
    assert browser.text("#prompt") == chat.text(row["messages"])
    check()
    browser.press("a")

    browser.hover(browser.find('.token[data-token="0"]'))
    for who, logp in (("student", student_logp[0]), ("teacher", teacher_logp()[0])):
        shown = browser.top(who)
        values, ids = logp.topk(5)
        assert [word for word, _ in shown] == [chat.tokenizer.decode([i]).replace(" ", "␣").replace("\n", "↵") for i in ids.tolist()]
        np.testing.assert_allclose([float(p.removesuffix("%")) for _, p in shown], 100 * values.exp().numpy(), atol=0.1)
    assert browser.complaints() == []


@pytest.mark.slow
def test_switching_a_peer_changes_colours_at_once(browser, loud):
    browser.open(loud[1])
    changed = set()
    for r in range(6):
        browser.choose(0, r)
        whole = browser.colours()
        for k in range(browser.run("return document.querySelectorAll('#parts input').length")):
            after = browser.run(
                f"document.querySelector('#parts input[data-part=\"{k}\"]').click();"
                "return [...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
            )
            changed |= {(r, k)} if after != whole else set()
            browser.press(str(k + 1))
            assert browser.colours() == whole
    assert len(changed) > 1
    assert browser.complaints() == []


@pytest.mark.slow
def test_everything_works_by_keys(browser, html):
    from selenium.webdriver.common.keys import Keys

    browser.open(html)
    for key, shown in (
        ("j", "0/1"),
        (Keys.ARROW_DOWN, "0/2"),
        ("k", "0/1"),
        (Keys.ARROW_UP, "0/0"),
        ("n", "1/0"),
        ("p", "0/0"),
        ("p", "0/0"),
    ):
        browser.press(key)
        browser.wait_for(shown)
    assert browser.run("return document.activeElement.dataset.group") == "0"  # where the keys lead, the focus is
    browser.press("l", "l", "h")
    assert browser.run("return document.activeElement.dataset.token") == browser.run(
        "return document.querySelector('.token[aria-selected=true]').dataset.token"
    )
    assert len(browser.top("student")) == len(browser.top("teacher")) == 5
    browser.press("?")
    assert browser.find("#keys").is_displayed()
    browser.press("j")  # the dialog keeps the keys
    browser.press(Keys.ESCAPE)
    assert not browser.find("#keys").is_displayed() and browser.run("return document.body.dataset.shown") == "0/0"

    groups = browser.run("return JSON.parse(document.getElementById('page').textContent).groups")
    moved = sorted((-abs(one["mean"]), g, r) for g, group in enumerate(groups) for r, one in enumerate(group["rollouts"]))
    for _, g, r in moved[:2]:
        browser.press("m")
        browser.wait_for(f"{g}/{r}")
    ratios = browser.run("return [...document.querySelectorAll('.token')].map((token) => Math.abs(token.dataset.ratio))")
    for place in sorted(range(len(ratios)), key=lambda i: -ratios[i])[:2]:
        browser.press("s")
        assert browser.run("return document.querySelector('.token[aria-selected=true]').dataset.token") == str(place)
    assert browser.complaints() == []


@pytest.mark.slow
def test_light_and_dark_follow_the_system_and_the_button(browser, html):
    def ground():
        return browser.run("return getComputedStyle(document.body).backgroundColor")

    try:
        for scheme, other in (("dark", "light"), ("light", "dark")):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.open(html)
            assert browser.run("return document.documentElement.dataset.theme") == scheme
            before, legend = ground(), browser.legend()
            assert len(set(legend)) == len(pages.EDGES) + 1
            browser.find("#theme").click()
            assert browser.run("return document.documentElement.dataset.theme") == other
            assert ground() != before and browser.legend() != legend
            browser.press("t")
            assert ground() == before
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert browser.complaints() == []


# ---- hostile texts, many rollouts

HOSTILE = "</script><script>document.title='taken'</script><!-- <b>"


def invented(rng, words: int, rollout: Rollout, parts, top=5) -> view.View:
    """Return a view with random numbers."""
    tokens = len(rollout.token_ids)

    def seen():
        top_logp = -np.sort(rng.exponential(size=(tokens, top)), -1).astype(np.float32)
        return view.Seen(-rng.exponential(2, tokens).astype(np.float32), rng.integers(0, words, (tokens, top), np.int32), top_logp)

    prompt = peers.TeacherPrompt(np.arange(9, dtype=np.int32), (), HOSTILE, ("primary",))
    return view.View(parts, seen(), tuple(view.Variant(mask, prompt, seen()) for mask in view.masks(len(parts))))


@pytest.mark.slow
def test_five_hundred_rollouts_with_hostile_texts(browser, random_model, tmp_path, monkeypatch):
    chat, rng = load_chat(str(random_model), {}), np.random.default_rng(0)
    monkeypatch.setattr(pages.Words, "texts", lambda self, chat: [f"{HOSTILE}{i}\n" if i % 2 else "" for i in self.places])
    made = pages.Page(HOSTILE, step=1, temperature=1.0, top=5, threshold=1.0, notes=[HOSTILE])
    kept = []
    for g in range(63):
        if g == 62:  # so many words that their places take four bytes
            made.words.place(np.arange(70_000, 140_000))
        prompt = Prompt(f"u{g}", HOSTILE, [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}], HOSTILE)
        one = group([1, 0] * 4, texts=[HOSTILE] * 8, feedback=[HOSTILE] * 8, prompt=prompt)
        ids = [rng.integers(0, 60_000 if g < 62 else 200_000, 0 if i == 7 else 60, np.int32) for i in range(8)]
        one = replace(one, rollouts=[replace(rollout, token_ids=i) for rollout, i in zip(one.rollouts, ids, strict=True)])
        parts = tuple(view.Part(role, 0, HOSTILE) for role in ("primary", "another", "failure"))
        views = [invented(rng, 60_000 if g < 62 else 200_000, rollout, parts if i else ()) for i, rollout in enumerate(one.rollouts)]
        made.add(one, views)
        kept.append(views)
    out = tmp_path / "page.html"
    out.write_text(made.html(chat), encoding="utf-8")

    browser.open(out)
    assert browser.run("return document.querySelectorAll('#prompts button').length") == 63
    assert browser.run("return document.title") == f"{HOSTILE}: the teacher's view"
    for g, r in ((0, 0), (31, 6), (62, 1), (62, 7)):
        browser.choose(g, r)
        whole = kept[g][r].variants[0].seen.logp
        wanted = whole.astype(np.float16).astype(np.float64) - kept[g][r].student.logp.astype(np.float16).astype(np.float64)
        assert browser.ratios().tolist() == wanted.tolist()
        classes = browser.run("return [...document.querySelectorAll('.token')].map(t => t.className)")
        assert classes == [f"token b{colour}" for colour in pages.colour_of(wanted)]
    assert "empty" in browser.text("#tokens")
    browser.choose(62, 1)
    browser.hover(browser.find('.token[data-token="3"]'))
    word = int(kept[62][1].student.top_ids[3, 0])
    assert browser.top("student")[0][0] == (f"{HOSTILE}{word}\n" if word % 2 else "∅").replace(" ", "␣").replace("\n", "↵")
    assert browser.complaints() == []


# ---- without a browser


def test_all_choices_of_few_parts_and_single_absences_of_many():
    assert view.masks(0) == [0] and view.masks(2) == [3, 2, 1, 0]
    assert sorted(view.masks(4)) == list(range(16))
    assert view.masks(5) == [31, 30, 29, 27, 23, 15, 0]
    context = PeerContext(0, (Peer("primary", 1, "a"), Peer("another", 2, "b")), (Peer("failure", 3, "c"),), "said")
    assert view.choose(context, 0b1111) == context
    assert view.choose(context, 0).empty
    assert view.choose(context, 0b1010) == PeerContext(0, (Peer("another", 2, "b"),), (), "said")
    assert [part.role for part in view.parts_of(context)] == ["primary", "another", "failure", "feedback"]


def test_what_is_packed_unpacks():
    rng, words = np.random.default_rng(1), pages.Words()
    rollout = Rollout("", rng.integers(0, 50, 7, np.int32))
    one = invented(rng, 50, rollout, (view.Part("primary", 0, ""),))
    content, wide = pages.pack(rollout, one, words)
    ids = list(words.places)
    places = np.frombuffer(content, "<u2", 7 + 35 + 2 * 35)
    assert not wide and [ids[place] for place in places[:7]] == rollout.token_ids.tolist()
    numbers = np.frombuffer(content, "<f2", offset=places.nbytes)
    assert len(numbers) == 7 + 35 + 2 * 7 + 2 * 35
    np.testing.assert_array_equal(numbers[42:49], one.variants[0].seen.logp.astype(np.float16))


@pytest.mark.slow
def test_the_scored_numbers_are_those_of_the_file(html, trained, student):
    """The file is unpacked here with Python's own tools: whole, of the run's EMA teacher, and it loads nothing."""
    (lm, chat), text = student, html.read_text(encoding="utf-8")
    teacher = build_lm(str(lm.name_or_path), attention="eager", dtype=torch.float32)
    load_average(trained[0] / "checkpoints" / "tried" / "global_step_1", teacher)
    assert not torch.equal(lm.model.norm.weight, teacher.model.norm.weight)
    rows = read_jsonl(trained[0] / "rollouts" / "tried" / f"{STEP}.jsonl")

    def unpacked(name):
        return zlib.decompress(base64.b64decode(text.split(f'id="{name}">')[1].split("</script>")[0]))

    place = next(i for i, row in enumerate(rows) if len(row["peers"]) == 3)
    g, i, response = place // 6, place % 6, rows[place]["response_ids"]
    details = json.loads(unpacked(f"group-{g}"))
    assert [len(one["parts"]) for one in details["rollouts"]] == [len(row["peers"]) for row in rows[g * 6 : g * 6 + 6]]
    tokens, variants = len(response), details["rollouts"][i]["variants"]
    numbers = np.frombuffer(unpacked(f"rollout-{g}-{i}"), "<f2", offset=2 * tokens * (1 + 5 + 5 * len(variants)))
    for v, variant in enumerate(variants):
        prompt = chat.encode(details["strings"][variant["prompt"]])
        wanted = plain(teacher, prompt, response).gather(-1, torch.tensor(response)[:, None])[:, 0]
        np.testing.assert_allclose(numbers[tokens * (6 + v) : tokens * (7 + v)], wanted.numpy(), rtol=1e-3, atol=1e-4)
    for word in ("http:", "https:", "src=", "@import", "url("):
        assert word not in text.lower(), "the page must load nothing"


# ---- complaints


def complaint(capsys, folder, monkeypatch, *arguments) -> str:
    monkeypatch.chdir(folder)
    assert command.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_what_is_not_there_is_said_with_what_is(trained, capsys, monkeypatch, tmp_path):
    folder = trained[0]
    said = complaint(capsys, folder, monkeypatch, "tired", "--step", 1)
    assert "tired: no run" in said and "Runs in logs/: tried" in said
    assert "step 9 was not dumped; it holds steps 1-2" in complaint(capsys, folder, monkeypatch, "tried", "--step", 9)
    assert "no such folder" in complaint(capsys, folder, monkeypatch, "tried", "--step", 1, "--rollouts", tmp_path / "none")
    assert "no whole checkpoint" in complaint(capsys, folder, monkeypatch, tmp_path, "--step", 1)
    said = complaint(capsys, folder, monkeypatch, "tried", "--step", 2, "--set", "data.seed=7", "actor_rollout_ref.rollout.n=8")
    assert "was shown" in said and "--set" in said


@pytest.mark.slow
def test_a_dump_of_an_older_version_is_told(trained, capsys, monkeypatch, tmp_path):
    rows = read_jsonl(trained[0] / "rollouts" / "tried" / "2.jsonl")
    older = [{name: value for name, value in row.items() if name not in ("messages", "response_ids")} for row in rows]
    write_jsonl(tmp_path / "2.jsonl", older)
    said = complaint(capsys, trained[0], monkeypatch, "tried", "--step", 2, "--rollouts", tmp_path)
    assert "2.jsonl:1: has no messages and no response_ids" in said and "older version" in said
    write_jsonl(tmp_path / "2.jsonl", [rows[0], *rows[2:]])
    assert "2.jsonl:2: rollout_index is 2 where 1 is next" in complaint(
        capsys, trained[0], monkeypatch, "tried", "--step", 2, "--rollouts", tmp_path
    )
    write_jsonl(tmp_path / "2.jsonl", [{**rows[0], "response_ids": rows[0]["response_ids"][1:]}])
    assert "do not read as its output" in complaint(capsys, trained[0], monkeypatch, "tried", "--step", 2, "--rollouts", tmp_path)


@pytest.mark.slow
def test_the_nearest_weights_are_taken_and_said(trained, tmp_path):
    folder = trained[0]
    run = runs.find_run(str(folder / "checkpoints" / "tried"))
    assert run.name == "tried" and run.rollouts == folder / "rollouts" / "tried"
    initial = run.config.actor_rollout_ref.model.path
    for step, path, words in (
        (1, initial, "began with, which sampled"),
        (2, "global_step_1", "which sampled"),
        (4, "global_step_1", "2 steps before the weights"),
    ):
        weights = view.find_weights(run, step)
        assert path in weights.student.path and words in weights.notes[0]
    assert view.find_weights(run, 2).of_teacher == "ema" and view.find_weights(run, 1).of_teacher == "student"
    named = view.find_weights(run, 2, teacher_model=initial)
    assert (named.teacher.path, named.of_teacher) == (initial, "student")
    arr = run.config.actor_rollout_ref
    teacher = str(folder / "checkpoints" / "tried" / "global_step_1" / "huggingface")
    held = replace(arr.actor, self_distillation=replace(arr.actor.self_distillation, teacher_update_rate=0.0))
    fixed = replace(arr, actor=held, ref=replace(arr.ref, model=replace(arr.ref.model, path=teacher)))
    named = view.find_weights(replace(run, config=replace(run.config, actor_rollout_ref=fixed)), 1, model=initial)
    assert (named.student.path, named.teacher.path) == (initial, teacher)  # --model says who the student is, no more
    shutil.copytree(folder / "checkpoints" / "tried", tmp_path / "copy")
    (tmp_path / "copy" / "global_step_1" / "manifest.json").unlink()
    with pytest.raises(view.UserError, match=r"no manifest\.json.*--model"):
        view.find_weights(replace(run, checkpoints=tmp_path / "copy"), 2)


def test_more_parts_than_are_all_tried(tmp_path, random_model):
    """Five parts, a long temperature, few tokens at once: every variant is the plain forward pass of its prompt."""
    chat, lm = load_chat(str(random_model), {}), build_lm(str(random_model), attention="eager", dtype=torch.float32)
    prompt = Prompt(
        "u", "tiny_chains", [{"role": "user", "content": "1+1"}], token_ids=chat.prompt_ids([{"role": "user", "content": "1+1"}])
    )
    one = group([1, 1, 1, 0, 0, 0], texts=["1", "2", "3", "4", "5", "6"], prompt=prompt)
    one = replace(one, rollouts=[replace(r, token_ids=np.asarray([5, 7, 9 + i], np.int32)) for i, r in enumerate(one.rollouts)])
    settings = [
        "actor_rollout_ref.actor.self_distillation.num_success_peers=2",
        "actor_rollout_ref.actor.self_distillation.num_failure_peers=3",
        "actor_rollout_ref.actor.self_distillation.failure_solution_condition=always",
    ]
    run = runs.Run(
        "r",
        config.load("sdpo", ["actor_rollout_ref.model.path=x", "data.train_files=[x]", "data.val_files=[x]", *settings]),
        tmp_path,
        tmp_path,
        tmp_path,
    )
    distill = run.config.actor_rollout_ref.actor.self_distillation
    step = view.Step(1, [one], [peers.select(one, distill, seed=42, step=1)])
    looker = view.Looker(build_lm(str(random_model), attention="forest", dtype=torch.float32), top=3, temperature=0.7, max_tokens=200)
    (views,) = view.views(step, list(view.student_views(step, looker)), looker, chat, run)
    assert len(views[0].parts) == 5 and [variant.mask for variant in views[0].variants] == view.masks(5)
    for rollout, seen in ((one.rollouts[0], views[0]), (one.rollouts[5], views[5])):
        for variant in seen.variants:
            with torch.no_grad():
                ids = torch.tensor([[*variant.prompt.token_ids, *rollout.token_ids]], dtype=torch.int64)
                logp = (lm(ids).logits[0, len(variant.prompt.token_ids) - 1 : -1] / 0.7).log_softmax(-1)
            wanted = logp.gather(-1, torch.tensor(rollout.token_ids, dtype=torch.int64)[:, None])[:, 0]
            np.testing.assert_allclose(variant.seen.logp, wanted.numpy(), atol=1e-4)
            np.testing.assert_allclose(variant.seen.top_logp, logp.topk(3).values.numpy(), atol=1e-4)
