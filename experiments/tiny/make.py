"""Make the tiny base models and their Parquet data, once: a folder is remade only when its recipe has changed.

    python -m experiments.tiny.make --models models --datasets datasets [--task chains] [--seed 0] [--teacher]

Writes MODELS/tiny-<task>[-seed<n>] (and MODELS/tiny-<task>-teacher, the same model trained longer on clean solutions)
and DATASETS/tiny_<task>/{train,test}.parquet.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from filelock import FileLock

from data.preprocess import to_row, write_parquet
from experiments.tiny import chains, misconceptions
from trainer import config, peers
from trainer.chat import Chat
from trainer.config.schema import SelfDistillation
from trainer.seeds import generator
from trainer.types import Prompt

CHAIN_LENGTH = 5
TOKENS_PER_LINE, RESULT_TOKEN = 6, 4  # of "3+5=8\n"
LETTER_TOKEN = 2  # of "think:B\nAnswer:B"
FORCED = 0.3  # share of a question's prompts with peers in which the first letter is forced (as `Annotator.follow` does)
MAX_REPROMPT = 256
# Shares of the warm-up: plain prompts with noisy targets, and prompts with peers (successes, failures), clean targets
CHAIN_MIX = {(0, 0): 0.66, (1, 0): 0.07, (2, 0): 0.06, (1, 1): 0.07, (2, 1): 0.08, (0, 1): 0.06}
QUESTION_MIX = {(0, 0): 0.40, (1, 0): 0.12, (2, 0): 0.08, (2, 1): 0.12, (1, 1): 0.10, (0, 1): 0.18}
ROWS = {"chains": (2048, 128), "misconceptions": (256, 256)}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything a base model depends on."""

    task: str
    seed: int = 0
    teacher: bool = False

    @property
    def name(self) -> str:
        return f"tiny-{self.task}" + ("-teacher" if self.teacher else "") + (f"-seed{self.seed}" if self.seed else "")

    def fingerprint(self) -> str:
        """Return a hash of the recipe and of the code that follows it."""
        code = [Path(__file__), *(Path(__file__).with_name(f"{name}.py") for name in ("chains", "misconceptions", "base", "tokenizer"))]
        parts = [json.dumps(dataclasses.asdict(self), sort_keys=True), *(path.read_text() for path in code)]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def make_model(recipe: Recipe, models: Path) -> Path:
    """Return the folder of the recipe's model, made now if it is not there or its recipe has changed."""
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{recipe.name}.lock"):  # a second run that starts meanwhile waits for the first one's
        return _make_model(recipe, models / recipe.name)


def _make_model(recipe: Recipe, folder: Path) -> Path:
    marker = folder / "recipe.json"
    if marker.is_file() and json.loads(marker.read_text())["fingerprint"] == recipe.fingerprint():
        return folder
    from experiments.tiny.base import Shape, WarmUp, warm_up
    from experiments.tiny.tokenizer import make_tokenizer
    from trainer.models import load_chat

    start = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    distill = config.load("sdpo").actor_rollout_ref.actor.self_distillation
    if recipe.task == "chains":
        texts = [*"0123456789", "+-*=", "Answer:"]
        shape, schedule = Shape(), WarmUp(seed=recipe.seed)
    else:
        texts = [*misconceptions.QUESTIONS, *misconceptions.LETTERS, *misconceptions.WAYS, "Answer:"]
        shape, schedule = Shape(hidden_size=64, num_hidden_layers=2, intermediate_size=128), WarmUp(seed=recipe.seed, steps=2500)
    make_tokenizer(partial, texts, distill)
    chat = load_chat(str(partial), {})
    warm_up(partial, chat, shape, schedule, _examples(recipe, chat, distill), f"warming up {recipe.name}")
    (partial / "recipe.json").write_text(json.dumps({**dataclasses.asdict(recipe), "fingerprint": recipe.fingerprint()}, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    print(f"{folder}: made in {time.monotonic() - start:.0f} s")
    return folder


def make_data(task: str, datasets: Path, seed: int = 0) -> Path:
    """Return the folder with train.parquet and test.parquet of a task, made now if it is not there or has changed."""
    datasets.mkdir(parents=True, exist_ok=True)
    with FileLock(datasets / f".tiny_{task}.lock"):
        return _make_data(task, datasets / f"tiny_{task}", seed)


def _make_data(task: str, folder: Path, seed: int) -> Path:
    marker, fingerprint = folder / "recipe.json", Recipe(task, seed).fingerprint()
    if marker.is_file() and json.loads(marker.read_text())["fingerprint"] == fingerprint:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for split, count in zip(("train", "test"), ROWS[task], strict=True):
        rng = generator(seed, task, split)
        rows = []
        while len(rows) < count:
            if task == "chains":
                problem = chains.draw_problem(rng, CHAIN_LENGTH)
                if problem in seen:
                    continue
                seen.add(problem)
                answer = chains.answer(chains.solve(problem))
            else:
                problem = misconceptions.QUESTIONS[len(rows)]
                answer = beliefs(seed).truth[problem]
            record = {"kind": "tiny", "dataset": f"tiny_{task}", "prompt": problem, "answer": answer, "idx": len(rows)}
            rows.append(to_row(record, split, f"{task} {len(rows)}"))
        write_parquet(rows, folder / f"{split}.parquet")
    marker.write_text(json.dumps({"task": task, "seed": seed, "fingerprint": fingerprint}, indent=2))
    return folder


def annotator(seed: int) -> chains.Annotator:
    """Return the annotator whose slips the base model of this seed learns."""
    return chains.Annotator.draw(generator(seed, "annotator"))


def beliefs(seed: int) -> misconceptions.Beliefs:
    """Return what the base model of this seed believes."""
    return misconceptions.Beliefs.draw(generator(seed, "beliefs"))


@dataclasses.dataclass(frozen=True)
class Case:
    """One example of the warm-up as text: the peers shown and the response, a token of which may be untrained."""

    question: str
    successes: list[str]
    failures: list[str]
    target: str
    untrained: int | None = None


def _draw_chain(rng: np.random.Generator, k: int, m: int, who: chains.Annotator, clean: bool) -> Case:
    problem = chains.draw_problem(rng, CHAIN_LENGTH)
    right = chains.solve(problem)
    failed = [s for s in (who.solve(problem, rng) for _ in range(20 * m)) if s[-1] != right[-1]][:m]
    if k:
        target, slip = who.follow(problem, right, rng)
        return Case(problem, [right] * k, failed, target, None if slip is None else slip * TOKENS_PER_LINE + RESULT_TOKEN)
    if failed:  # with a failure alone: another attempt that ends elsewhere
        attempts = [who.solve(problem, rng) for _ in range(20)]
        return Case(problem, [], failed, next((s for s in attempts if s[-1] != failed[0][-1]), attempts[0]))
    return Case(problem, [], [], right if clean else who.solve(problem, rng))


def _draw_question(rng: np.random.Generator, k: int, m: int, held: misconceptions.Beliefs) -> Case:
    name = str(rng.choice(misconceptions.QUESTIONS))
    if not k and not m:
        return Case(name, [], [], misconceptions.answer_as(held.belief[name], rng))
    # a made-up truth: nothing here says which letter is really right
    right, wrong = (misconceptions.LETTERS[i] for i in rng.choice(4, 2, replace=False))
    ways = [str(way) for way in rng.choice(misconceptions.WAYS, k + m + 1)]
    belief = held.belief[name].copy()
    belief[misconceptions.LETTERS.index(wrong)] = 0  # with a failure alone: anything but its letter
    target = misconceptions.write(right, ways[-1]) if k else misconceptions.answer_as(belief, rng)
    shown = [misconceptions.write(right if i < k else wrong, ways[i]) for i in range(k + m)]
    if rng.random() < FORCED:  # another letter was written first, whatever the peers say: go on from it, in the format
        forced = str(rng.choice([letter for letter in misconceptions.LETTERS if letter != target[-1]]))
        return Case(name, shown[:k], shown[k:], misconceptions.write(forced, ways[-1]), LETTER_TOKEN)
    return Case(name, shown[:k], shown[k:], target)


def _examples(recipe: Recipe, chat: Chat, distill: SelfDistillation) -> Callable:
    """Return a function that draws one example of the warm-up, its prompt rendered as the teacher's are."""
    from experiments.tiny.base import example

    distill = dataclasses.replace(distill, max_reprompt_len=MAX_REPROMPT)
    shares = CHAIN_MIX if recipe.task == "chains" else QUESTION_MIX
    kinds, weights = list(shares), list(shares.values())
    who, held = annotator(recipe.seed), beliefs(recipe.seed)

    def draw(rng: np.random.Generator):
        k, m = kinds[rng.choice(len(kinds), p=weights)]
        case = _draw_chain(rng, k, m, who, recipe.teacher) if recipe.task == "chains" else _draw_question(rng, k, m, held)
        successes = [peers.Peer("another" if i else "primary", i, text) for i, text in enumerate(case.successes)]
        failures = [peers.Peer("failure", k + i, text) for i, text in enumerate(case.failures)]
        prompt = Prompt(uid="warm-up", data_source="", messages=[{"role": "user", "content": case.question}])
        context = peers.PeerContext(k + m, tuple(successes), tuple(failures))
        return example(chat, peers.render(prompt, context, distill, chat).token_ids, case.target, case.untrained)

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--datasets", type=Path, default=Path("datasets"))
    parser.add_argument("--task", choices=list(ROWS), default="chains")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another annotator and another model")
    parser.add_argument("--teacher", action="store_true", help="also make the external teacher")
    options = parser.parse_args()
    make_data(options.task, options.datasets, options.seed)
    make_model(Recipe(options.task, options.seed), options.models)
    if options.teacher:
        make_model(Recipe(options.task, options.seed, teacher=True), options.models)


if __name__ == "__main__":
    main()
