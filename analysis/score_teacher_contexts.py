"""What a teacher thinks of responses under each context: the mean log-prob of their tokens.

    python analysis/score_teacher_contexts.py --model checkpoints/NAME --self-target-only \\
        --variants OUT/context_variants.jsonl --targets OUT/candidate_responses.jsonl --output OUT/scores.jsonl

`--self-target-only` scores each candidate under the contexts made for it; else every target of a prompt
(target_responses.jsonl) is scored under all of the prompt's contexts. Rows have the published fields. Responses are read
by their own token ids, the end of the turn included, where the rollouts' dump had them, else by their text's. Scores go to
disk batch by batch: the same command takes up again what was killed. A checkpoint of ours is read with its EMA teacher;
its student's own score of the plain prompt then comes as condition `student`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # see analysis/__init__.py

import argparse
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch

from analysis import command, reader
from analysis.progress import Key, Progress
from analysis.rows import Fields, Row, read_jsonl, require, write_jsonl
from analysis.scoring import ForestScorer, Pair, Scorer, load_lm
from data.writing import shown
from trainer import models
from trainer.chat import Chat
from trainer.engines.base import Settings
from trainer.errors import UserError

VARIANT: Fields = {
    "variant_id": str,
    "condition": str,
    "prompt_id": str,
    "response_id": str,
    "variant_spec": dict,
    "sections_used": dict,
    "difficulty_bucket": str,
    "assembled_context_text": str,
}
CANDIDATE: Fields = {"prompt_id": str, "response_id": str, "response_text": str, "reward": float, "success": bool}
TARGET: Fields = {
    "target_id": str,
    "target_type": str,
    "prompt_id": str,
    "response_text": str,
    "reward": (float, type(None)),
    "success": bool,
    "source_model": str,
}
STUDENT = "student"  # the condition under which the student itself scores what `base` shows
PUBLISHED_LENGTH = 8192  # of context and response, for the published cut
BLOCK = 256  # different pairs that are put in order together


@dataclass(frozen=True, eq=False)
class Target:
    """A response to be scored: what the rows say of it, and its token ids."""

    target_id: str
    target_type: str
    source_model: str
    response_id: str | None  # of the candidate it is
    reward: float | None
    success: bool
    where: str
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Context:
    """A context: its token ids, and where it stands first."""

    ids: np.ndarray
    where: str
    cut: bool  # the published left cut of a context that was too long


@dataclass(frozen=True, eq=False)
class Job:
    """A row of the output to be: a variant (without its text), one target, whose weights score."""

    variant: Row
    context: Context
    target: Target
    weights: str

    @property
    def key(self) -> Key:
        return self.variant["variant_id"], self.target.target_id


@dataclass
class Jobs:
    """All jobs in the order of the output, and what was left out."""

    jobs: list[Job] = field(default_factory=list)
    empty: int = 0
    too_long: Counter[str] = field(default_factory=Counter)
    no_targets: set[str] = field(default_factory=set)


class Texts:
    """Texts as token ids, each encoded once."""

    def __init__(self, chat: Chat, options: argparse.Namespace) -> None:
        self.chat, self.options = chat, options
        self.contexts: dict[bytes, Context] = {}  # by a hash of the text
        bos = chat.tokenizer.bos_token_id
        self.bos = [] if bos is None else [bos]

    def target(self, row: Row, where: str, target_id: str, target_type: str, source_model: str, response_id: str | None) -> Target:
        """Return the target of a row, read by its own token ids if it has them."""
        ids, text = row.get("response_ids"), row["response_text"]
        if ids and not self.options.retokenize:
            require(row, where, {"response_ids": list})
            if not all(type(i) is int and 0 <= i < len(self.chat.tokenizer) for i in ids) or self.chat.decode(ids) != text:
                raise UserError(
                    f"{where}: the token ids of response {target_id!r} do not read as its text with the tokenizer of {self.options.model}: "
                    "another tokenizer made them. Score with the model that made them, or by the text alone with --retokenize."
                )
            ids = np.asarray(ids, np.int32)
        else:
            ids = self.chat.encode(text)
        return Target(target_id, target_type, source_model, response_id, row["reward"], row["success"], where, ids)

    def context(self, row: Row, where: str) -> Context:
        """Return the context of a variant; equal texts are one context."""
        text = row["assembled_context_text"]
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if key not in self.contexts:
            ids = self.chat.encode(text)
            if "context_tokens" in row and row["context_tokens"] != len(ids):
                raise UserError(
                    f"{where}: the context takes {len(ids)} tokens with the tokenizer of {self.options.model}, not the "
                    f"{row['context_tokens']} it was made of: it was built for another model. Build the contexts for this one."
                )
            if row.get("layout") != "chat":  # a chat template writes its own beginning
                ids = np.concatenate([np.asarray(self.bos, np.int32), ids])
            if not len(ids):
                raise UserError(f"{where}: the context is empty, so nothing would predict the first token.")
            self.contexts[key] = Context(ids, where, cut=False)
        return self.contexts[key]


def read_targets(texts: Texts, options: argparse.Namespace) -> dict[str, list[Target]]:
    """Return the targets by response_id (candidates, `--self-target-only`) or by prompt_id."""
    found: dict[str, list[Target]] = defaultdict(list)
    for where, row in read_jsonl(options.targets, CANDIDATE if options.self_target_only else TARGET):
        if options.self_target_only:
            name = row["response_id"]
            if name in found:
                raise UserError(f"{where}: response {name!r} stood already at {found[name][0].where}.")
            found[name].append(texts.target(row, where, name, "self_response", "student_rollout", name))
        else:
            name = row["prompt_id"]
            source = row.get("source_response_id")
            found[name].append(texts.target(row, where, row["target_id"], row["target_type"], row["source_model"], source))
    return found


def read_jobs(options: argparse.Namespace, chat: Chat, weights: str) -> Jobs:
    """Return what is to be scored, filters applied.

    Raises UserError for a variant whose response is no target, and when nothing is left.
    """
    texts, out = Texts(chat, options), Jobs()
    targets = read_targets(texts, options)
    places: dict[Key, str] = {}
    conditions: set[str] = set()
    for where, row in read_jsonl(options.variants, VARIANT):
        conditions.add(row["condition"])
        if options.condition_filter and row["condition"] not in options.condition_filter:
            continue
        if options.self_target_only and row["response_id"] not in targets:
            raise UserError(f"{where}: its response {row['response_id']!r} is not in {options.targets}: they were not made together.")
        wanted = targets.get(row["response_id" if options.self_target_only else "prompt_id"], [])
        if not wanted:
            out.no_targets.add(row["prompt_id"])
        context = texts.context(row, where)
        slim = {name: value for name, value in row.items() if name != "assembled_context_text"}
        for target in wanted:
            if options.target_type_filter and target.target_type not in options.target_type_filter:
                continue
            if options.max_examples is not None and len(places) >= options.max_examples:
                continue
            job = Job(slim, context, target, weights)
            if job.key in places:
                raise UserError(f"{where}: variant {job.key[0]!r} and target {job.key[1]!r} stood already together at {places[job.key]}.")
            places[job.key] = where
            _add(job, out, options)
    for name in set(options.condition_filter or ()) - conditions:
        raise UserError(f"--condition-filter {name}: {options.variants} has no such condition, but {', '.join(sorted(conditions))}.")
    if not out.jobs:
        raise UserError(
            f"nothing is left to score: {options.variants} and {options.targets} share no prompt, or --condition-filter, "
            "--target-type-filter and --max-model-len leave none."
        )
    if weights == "ema" and not options.no_student:
        out.jobs += [_by_the_student(job) for job in out.jobs if job.variant["condition"] == "base"]
    return out


def _add(job: Job, out: Jobs, options: argparse.Namespace) -> None:
    """Add a job, unless there is nothing of it to score; cut its context from the left as published if that is asked for."""
    context, response, room = job.context, job.target.ids, options.max_model_len
    if not len(response):
        out.empty += 1
        return
    if len(context.ids) + len(response) > room:
        if options.legacy_contexts and len(response) < room:
            context = Context(context.ids[len(context.ids) + len(response) - room :], context.where, cut=True)
            job = Job(job.variant, context, job.target, job.weights)
        elif options.skip_too_long or options.legacy_contexts:
            out.too_long[job.variant["condition"]] += 1
            return
        else:
            raise UserError(
                f"{context.where}: context and response take {len(context.ids)} + {len(response)} tokens, more than --max-model-len {room} "
                "(default: the positions the model was made for). Build the contexts with a smaller "
                "actor_rollout_ref.actor.self_distillation.max_reprompt_len, or leave such rows out and count them with --skip-too-long. "
                "(The published script cut the question off: --legacy-contexts.)"
            )
    out.jobs.append(job)


def _by_the_student(job: Job) -> Job:
    """Return the job of the same context and response for the student itself."""
    name = f"{STUDENT}|{job.variant['prompt_id']}|{job.variant['response_id']}"
    variant = job.variant | {"variant_id": hashlib.sha1(name.encode()).hexdigest()[:20], "condition": STUDENT}
    return Job(variant, job.context, job.target, "student")


def output_row(job: Job, logp: np.ndarray, options: argparse.Namespace) -> Row:
    """Return the row of a scored job: the published fields in their order, then ours."""
    variant, target = job.variant, job.target
    total = float(logp.sum(dtype=np.float64))
    shown_responses = {name.rpartition("::")[0] for name in variant.get("evidence_ids") or [] if not name.endswith("::feedback")}
    row = {
        "variant_id": variant["variant_id"],
        "target_id": target.target_id,
        "condition": variant["condition"],
        "target_type": target.target_type,
        "prompt_id": variant["prompt_id"],
        "response_id": variant["response_id"],
        "source_model": target.source_model,
        "teacher_model": options.model,
        "sections_used": variant["sections_used"],
        "variant_spec": variant["variant_spec"],
        "teacher_seq_logprob": total,
        "teacher_avg_token_logprob": total / len(logp),
        "teacher_score": total / len(logp),
        "teacher_response_len": len(logp),
        "teacher_prompt_len": len(job.context.ids),
        "teacher_prompt_truncated": job.context.cut or bool(variant.get("cuts")),
        "reward": float(target.success) if target.reward is None else target.reward,
        "success": target.success,
        "difficulty_bucket": variant["difficulty_bucket"],
        "teacher_weights": job.weights,
        "target_in_context": target.response_id in shown_responses,
        "uid": variant.get("uid"),
    }
    if options.token_scores:
        row["token_logprobs"] = [round(value, 6) for value in logp.tolist()]
    return row


def score_jobs(jobs: Sequence[Job], scorer: Scorer, progress: Progress, options: argparse.Namespace) -> Iterator[int]:
    """Score the jobs, what is equal once, and put their rows on disk; yield after each batch how many."""
    for block in _blocks(jobs):
        pairs: list[Pair] = [(members[0].context.ids, members[0].target.ids) for members in block]
        for batch in scorer.batches(pairs):
            scores = scorer.score([pairs[i] for i in batch])
            rows = [output_row(job, logp, options) for i, logp in zip(batch, scores, strict=True) for job in block[i]]
            wrong = next((row for row in rows if not np.isfinite(row["teacher_score"])), None)
            if wrong is not None:
                raise UserError(
                    f"the score of {wrong['target_id']!r} under {wrong['condition']!r} is {wrong['teacher_score']}: the weights of "
                    f"{options.model} do not work in {options.dtype}; take another --dtype."
                )
            progress.add(rows)
            yield len(rows)


def _blocks(jobs: Sequence[Job]) -> Iterator[list[list[Job]]]:
    """Yield jobs with equal contexts and responses as one list, prompts together, about BLOCK lists at a time.

    Equal responses of two rollouts are one too: scored apart they would differ in their last bits, and no longer be tied.
    """
    prompts: dict[str, dict[tuple[int | bytes, bytes], list[Job]]] = {}
    for job in jobs:
        alike = prompts.setdefault(job.variant["prompt_id"], {})
        context = job.context.ids.tobytes() if job.context.cut else id(job.context)  # those not cut are one object if equal
        alike.setdefault((context, job.target.ids.tobytes()), []).append(job)
    block: list[list[Job]] = []
    for alike in prompts.values():
        block += alike.values()
        if len(block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block


def open_scorer(source: reader.Reader, weights: str, longest: int, options: argparse.Namespace, before: Scorer | None) -> Scorer:
    """Return the engine with the weights that score; a vLLM that is there already takes them in."""
    dtype = getattr(torch, options.dtype)
    if options.engine == "hf":
        return ForestScorer(load_lm(source, weights, dtype=dtype), device=options.device, max_tokens=options.max_tokens)
    if find_spec("vllm") is None:
        raise UserError("--engine vllm: vLLM is not installed in this environment (docs/rollouts.md says how); --engine hf is.")
    from trainer.engines.vllm_scorer import VLLMScorer

    if before is None:
        settings = Settings(
            max_num_seqs=64,
            max_model_len=longest + 1,  # vLLM samples a token behind
            max_num_batched_tokens=2048,  # it holds the logits of so many tokens
            memory_share=0.5 if options.device == "cpu" else 0.8,
            trust_remote_code=source.config.actor_rollout_ref.model.trust_remote_code,
        )
        before = VLLMScorer(source.path, stop_ids=[], device=options.device, dtype=dtype, settings=settings)
        if weights == "student":
            return before
    before.load_weights(dict(load_lm(source, weights, dtype=dtype).named_parameters()))
    return before


def score(options: argparse.Namespace) -> None:
    """Score everything, going on where an earlier call stopped, and write the output, whole or not at all."""
    start = time.monotonic()
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{options.output}: is there already. Choose another --output, or --overwrite.")
    source = reader.find(options.model, options.config_name, options.set, options.settings)
    weights = reader.weights_of(source, options.teacher)
    trust = source.config.actor_rollout_ref.model.trust_remote_code
    model_config = models.resolve(source.path, "--model", trust_remote_code=trust).get_text_config()
    if options.max_model_len is None:
        options.max_model_len = PUBLISHED_LENGTH if options.legacy_contexts else model_config.max_position_embeddings
    if options.max_model_len > model_config.max_position_embeddings:
        print(
            f"note: --max-model-len {options.max_model_len} is more than the {model_config.max_position_embeddings} positions the model "
            "was made for: scores beyond them are those of a model out of its depth"
        )
    command.resolve_device(options)
    settings = {
        "model": source.path,
        "weights": models.check_weights(source.path, "--model"),
        "teacher": weights,
        "engine": options.engine,
        "dtype": options.dtype,
        "variants": _hash(options.variants),
        "targets": _hash(options.targets),
        "max_model_len": options.max_model_len if options.legacy_contexts else None,
        "retokenize": options.retokenize,
        "token_scores": options.token_scores,
    }
    todo = read_jobs(options, models.load_chat(source.path, {}, trust_remote_code=trust), weights)
    progress = Progress(options.output.with_name(f"{options.output.name}.progress"), settings)
    if progress.found:
        print(f"going on: {progress.found} scores are in {progress.path}")
    try:
        score_missing(todo, progress, source, options)
    except KeyboardInterrupt:
        print(f"{len(progress.done)} of {len(todo.jobs)} scores are kept in {progress.path}; the same command goes on.", file=sys.stderr)
        raise
    rows = [progress.done[job.key] for job in todo.jobs]
    write_jsonl(options.output, rows)
    progress.remove()
    _say(todo, rows, source, weights, options, time.monotonic() - start)


def score_missing(todo: Jobs, progress: Progress, source: reader.Reader, options: argparse.Namespace) -> None:
    """Score what is not on disk yet, the teacher's jobs before the student's."""
    missing = [job for job in todo.jobs if job.key not in progress.done]
    longest = max((len(job.context.ids) + len(job.target.ids) for job in missing), default=0)
    scorer: Scorer | None = None
    for weights in dict.fromkeys(job.weights for job in missing):
        jobs = [job for job in missing if job.weights == weights]
        if options.engine == "hf":
            scorer = None  # the memory of the weights before
        scorer = open_scorer(source, weights, longest, options, scorer)
        for _ in shown((None for n in score_jobs(jobs, scorer, progress, options) for _ in range(n)), weights, total=len(jobs)):
            pass
        if isinstance(scorer, ForestScorer):
            apart = sum(len(job.context.ids) + len(job.target.ids) - 1 for job in jobs)
            print(f"{scorer.computed} tokens computed for {len(jobs)} scores; one by one {apart} would have been")
    if scorer is not None:
        scorer.close()


def _hash(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _say(todo: Jobs, rows: Sequence[Row], source: reader.Reader, weights: str, options: argparse.Namespace, seconds: float) -> None:
    whose = {"ema": "its EMA teacher", "student": "its own weights"}[weights]
    print(f"{options.output}: {len(rows)} scores by {source.path} ({whose}, {options.dtype}, {options.device}) in {seconds:.1f} s")
    leaks = sum(row["target_in_context"] for row in rows)
    notes = [
        (todo.empty, "responses without a token were left out"),
        (sum(todo.too_long.values()), f"rows longer than --max-model-len were left out: {dict(todo.too_long)}"),
        (len(todo.no_targets), "prompts have no target"),
        (leaks, "rows score a response that their context shows (target_in_context)"),
    ]
    for count, note in notes:
        if count:
            print(f"note: {count} {note}")
    fixed = source.config.actor_rollout_ref.ref.model.path
    if source.checkpoint is not None and weights == "student" and fixed:
        print(f"note: this run's teacher was the fixed model {fixed}; what scored is its student")


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of(__doc__)
    parser.add_argument("--variants", type=Path, required=True, help="context_variants.jsonl")
    parser.add_argument("--targets", type=Path, required=True, help="target_responses.jsonl, or candidates with --self-target-only")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="even if the output is there already")
    reader.add_arguments(parser)
    parser.add_argument(
        "--teacher", choices=("ema", "student"), help="whose weights of a checkpoint; default: the EMA teacher's if it has one"
    )
    parser.add_argument("--no-student", action="store_true", help="leave out the student's own scores that come with an EMA teacher's")
    parser.add_argument("--engine", choices=("hf", "vllm"), default="hf")
    command.add_device(parser)
    parser.add_argument("--max-examples", type=command.positive, help="only the first so many pairs of variant and target")
    parser.add_argument(
        "--max-model-len", type=command.positive, help="tokens of context and response together; more is refused; default: the model's"
    )
    parser.add_argument("--max-tokens", type=command.positive, default=16384, help="tokens computed in one pass (hf)")
    parser.add_argument("--condition-filter", nargs="+", help="only these conditions")
    parser.add_argument("--target-type-filter", nargs="+", help="only these target types")
    parser.add_argument("--self-target-only", action="store_true", help="score each candidate under the contexts made for it")
    parser.add_argument("--skip-too-long", action="store_true", help="leave out and count what is longer than --max-model-len")
    parser.add_argument("--retokenize", action="store_true", help="read responses by their text although there are token ids")
    parser.add_argument("--token-scores", action="store_true", help="keep the log-prob of every token (token_logprobs)")
    parser.add_argument("--legacy-contexts", action="store_true", help="cut contexts that are too long from the left, as published")
    return command.main(parser, score, arguments)


if __name__ == "__main__":
    sys.exit(main())
