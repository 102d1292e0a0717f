"""One MOPD update three ways in one run, beside the matrix products that cannot be avoided.

    python -m benchmarks.distill_step [--size 0.1b] [--device cuda] [--checkpointing] [--repeats 3] [--help]

A random model of a named size learns from a random teacher on groups of rollouts of random tokens: no download, no
Ray, nothing installed but torch and transformers (rich comes with it; matplotlib only for the plot). The ways are

    forest   as the trainer does it: what a group's sequences have in common is computed once, the loss comes from
             hidden states in chunks (trainer.forest, trainer.attention, trainer.fused)
    packed   the same without sharing
    padded   as the published code does it (behaviour 3.3, 3.5, 4.6, 5.1, 11.33-37): every sequence alone, prompts
             padded on the left to the longest of the batch, responses on the right to their budget, whole logits of
             the padded rows of student and teacher, top k and tail from those. In its favour: its teacher stays on the
             device unless --stream-teacher, student prompts are padded to --prompt-budget only, which is the
             question's length (the published launchers: 2,048), and the pass for old log-probs that it also runs is
             timed with --old-logp alone, beside and not in its update.

Phases, for all ways: `teacher` and `student` are the bodies (the student's forward and backward), `head` all from
hidden states to the loss and back, `optimizer` clipping and AdamW on float32 weights. The learning rate is 0, so
every run of every way computes the same update: first all must agree on the loss and every gradient of a model of two
layers, and the timed runs must agree as well. The floor is the matrix products of the linear layers and of the head
for the tokens the forest computes, run as such, without attention. Runs alternate; numbers are medians of the rounds.
Writes benchmarks/results/distill_step_SIZE_DEVICE.json and .png.
"""

import argparse
import importlib.util
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.tools import PEAK_FLOPS, SHAPES, PeakMemory, model_config, write_results
from trainer import forest
from trainer.attention import plan_attention
from trainer.fused import Head, fused_divergence
from trainer.machine import cores
from trainer.models import ForestLM

WAYS = ("forest", "packed", "padded")
PHASES = ("teacher", "student", "head", "optimizer")
ALPHA, TOPK = 0.5, 100
FLOOR_ROWS = 1024  # logits that the floor's head makes at once
HEAD_SCALE = 3  # of random weights: with theirs all words are about as likely, and a divergence of 0.002 drowns in rounding
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative, of loss and gradient norm
# relative, of whole gradients in float32 at full size: once in some thousand tokens two words at the edge of the top k
# are equal but for rounding, and each way takes another
GRADIENT_TOLERANCE, DRAWS = 1e-3, 3


@dataclass(frozen=True)
class Settings:
    """What is measured; see the command line."""

    size: str = "0.1b"
    vocabulary: int | None = None
    groups: int = 1
    rollouts: int = 8
    micro_batch: int | None = None
    question: int = 256
    prompt_budget: int | None = None
    response_min: int = 512
    response_max: int = 1024
    device: str = "cpu"
    dtype: str = "float32"
    checkpointing: bool = False
    stream_teacher: bool = False
    old_logp: bool = False
    ways: tuple[str, ...] = WAYS
    cpu_time: bool = False
    repeats: int = 3

    @property
    def prompt_width(self) -> int:
        """What the padded way pads the student's prompts to."""
        return self.prompt_budget or self.question

    def config(self, **changes: Any) -> Qwen3Config:
        """Return the models' configuration. Our sizes get 32k words by default: with 152k the head would outweigh their body."""
        if self.vocabulary or not self.size.startswith("qwen3-"):
            changes["vocab_size"] = self.vocabulary or 32_000
        return model_config(self.size, **changes)


@dataclass(frozen=True, eq=False)
class Rollout:
    """Token ids, int64: what the student read, what the teacher reads, what was sampled."""

    question: np.ndarray
    context: np.ndarray
    response: np.ndarray


def draw_groups(settings: Settings, words: int) -> list[list[Rollout]]:
    """Return groups of random rollouts, half of them successes, whose teacher contexts show 2 successes and 1 failure.

    Each member sees the first ones other than itself in one order per group (trainer.peers.select), question first.
    """
    rng, groups = np.random.default_rng(0), []
    for _ in range(settings.groups):
        question = rng.integers(words, size=settings.question)
        lengths = rng.integers(settings.response_min, settings.response_max, size=settings.rollouts, endpoint=True)
        responses = [rng.integers(words, size=length) for length in lengths]
        order = rng.permutation(settings.rollouts)
        successes, failures = np.array_split(order, 2)
        group = []
        for i, response in enumerate(responses):
            shown = [*[j for j in successes if j != i][:2], *[j for j in failures if j != i][:1]]
            group.append(Rollout(question, np.concatenate([question, *(responses[j] for j in shown)]), response))
        groups.append(group)
    return groups


class Meter:
    """Seconds and peak memory by phase of one update. A phase may be entered several times; times add up."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock, self.memory = device, clock, PeakMemory(device)
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, int | None] = {}
        self.memory.reset()
        self.held = self.memory.peak()  # weights, moments and what else was there before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._synchronize()
        self.memory.reset()
        start = self.clock()
        yield
        self._synchronize()
        self.seconds[name] += self.clock() - start
        peak = self.memory.peak()
        self.peaks[name] = peak if peak is None else max(peak, self.peaks.get(name) or 0)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class MasterAdamW:
    """AdamW on float32 weights, clipped; where the model computes in another dtype they are copies of its own.

    Gradients come in the model's dtype. The learning rate is 0: all the work is done and nothing moves.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in parameters]
        self.steps = [torch.optim.AdamW([master], lr=0.0, weight_decay=0.01, fused=True) for master in self.masters]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        self.step()  # moments exist from now on

    def step(self) -> float:
        """Clip, step and drop the gradients; return their norm."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters, 1.0))
        with torch.no_grad():
            for p, master, adam in zip(self.parameters, self.masters, self.steps, strict=True):
                if master is not p:
                    master.grad, p.grad = p.grad.float(), None
                adam.step()
                master.grad = None
                if master is not p:
                    p.copy_(master)
        return norm


class Update:
    """Student, teacher, optimizer and a batch, and the ways to make one update of them."""

    def __init__(self, settings: Settings, config: Qwen3Config, seed: int = 0) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        dtype = getattr(torch, settings.dtype)
        self.student = _random_lm(config, 2 * seed, self.device, dtype).train()
        self.teacher = _random_lm(config, 2 * seed + 1, self.device, dtype).eval().requires_grad_(False)
        if settings.checkpointing:
            self.student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = MasterAdamW(list(self.student.parameters()))
        self.host = {}  # the teacher in host memory
        if settings.stream_teacher:
            self.host = {
                p: torch.empty_like(p, dtype=torch.float32, device="cpu", pin_memory=self.device.type == "cuda")
                for p in self.teacher.parameters()
            }
            for p, copy in self.host.items():
                copy.copy_(p)
        groups = draw_groups(settings, config.vocab_size)
        step = settings.micro_batch or settings.rollouts
        self.micro_batches = [group[at : at + step] for group in groups for at in range(0, settings.rollouts, step)]
        self.rollouts = [rollout for group in groups for rollout in group]
        self.weight = 1 / self.response_tokens  # the loss is a mean over all response tokens

    def meter(self) -> Meter:
        return Meter(self.device, time.process_time if self.settings.cpu_time else time.perf_counter)

    @property
    def response_tokens(self) -> int:
        return sum(len(rollout.response) for rollout in self.rollouts)

    def backward(self, way: str, meter: Meter) -> float:
        """Leave the gradients of one update in the student and return its loss."""
        for lm in (self.student, self.teacher):
            lm.set_attn_implementation("sdpa" if way == "padded" else "forest")
        if way == "padded":
            return sum(self._padded(rollout, meter) for rollout in self.rollouts)
        return sum(self._forest(rollouts, way == "forest", meter) for rollouts in self.micro_batches)

    def forests(self, *, share: bool) -> tuple[list[forest.Forest], list[forest.Forest]]:
        """Return the teacher's and the student's forests by micro-batch."""
        sides = zip(*((_teacher_forest(part, share), _student_forest(part, share)) for part in self.micro_batches), strict=True)
        return tuple(list(side) for side in sides)

    def _forest(self, rollouts: Sequence[Rollout], share: bool, meter: Meter) -> float:
        with meter.phase("teacher"), torch.no_grad():
            packed = _teacher_forest(rollouts, share)
            known, known_head = _hidden(self.teacher, packed, self.device)
        with meter.phase("student"):
            packed = _student_forest(rollouts, share)
            hidden, head = _hidden(self.student, packed, self.device)
        with meter.phase("head"):
            leaf = hidden.detach().requires_grad_()
            targets = torch.from_numpy(np.concatenate([r.response for r in rollouts])).to(self.device)
            weights = torch.full((len(leaf),), self.weight, device=self.device)
            out = fused_divergence(leaf, known, head, known_head, alpha=ALPHA, topk=TOPK, weights=weights, targets=targets)
            out.loss.backward()
        with meter.phase("student"):
            hidden.backward(leaf.grad)
        return float(out.loss.detach())

    def _padded(self, rollout: Rollout, meter: Meter) -> float:
        """Return the loss of one sequence. The student comes first: it chooses the words to compare."""
        budget, longest = self.settings.response_max, max(len(r.context) for r in self.rollouts)
        rows = slice(-budget - 1, -1)  # they predict the response
        asked = self._row(rollout.question, rollout.response, self.settings.prompt_width)
        shown = self._row(rollout.context, rollout.response, longest)
        if self.settings.old_logp:
            with meter.phase("old_logp"), torch.no_grad():
                logits = self.student(**asked, use_cache=False).logits[0, rows].float()
                logits.log_softmax(-1).gather(-1, asked["input_ids"][0, -budget:, None])
        with meter.phase("student"):
            hidden = self.student.base_model(**asked, use_cache=False).last_hidden_state
        with meter.phase("head"):
            leaf = hidden.detach().requires_grad_()
            logits = self.student.lm_head(leaf)[0, rows].float()
            top, words = logits.topk(TOPK)
            student = top - logits.logsumexp(-1, keepdim=True)
        with meter.phase("teacher"), torch.no_grad(), self._streamed():
            known = self.teacher.base_model(**shown, use_cache=False).last_hidden_state
        with meter.phase("head"):
            with torch.no_grad():
                logits = self.teacher.lm_head(known)[0, rows].float()
                teacher = logits.gather(-1, words) - logits.logsumexp(-1, keepdim=True)
            mask = torch.arange(budget, device=self.device) < len(rollout.response)
            loss = (_divergence(_with_tail(student), _with_tail(teacher)) * mask).sum() * self.weight
            loss.backward()
        with meter.phase("student"):
            hidden.backward(leaf.grad)
        return float(loss.detach())

    def _row(self, prompt: np.ndarray, response: np.ndarray, prompt_budget: int) -> dict[str, Tensor]:
        """Return ids, mask and positions [1, prompt budget + response budget] of one sequence."""
        left, right = prompt_budget - len(prompt), self.settings.response_max - len(response)
        mask = np.pad(np.ones(len(prompt) + len(response), np.int64), (left, right))
        row = {
            "input_ids": np.pad(np.concatenate([prompt, response]), (left, right)),
            "attention_mask": mask,
            "position_ids": (mask.cumsum() - 1).clip(0),
        }
        return {name: torch.from_numpy(value).to(self.device)[None] for name, value in row.items()}

    @contextmanager
    def _streamed(self) -> Iterator[None]:
        """With `stream_teacher`, bring every layer's float32 weights from host memory when it runs (behaviour 11.36)."""
        if not self.host:
            yield
            return

        def fetch(module: nn.Module, _: Any) -> None:
            for p in module.parameters():
                p.copy_(self.host[p].to(self.device, non_blocking=True))

        body = self.teacher.base_model
        hooks = [module.register_forward_pre_hook(fetch) for module in (body.embed_tokens, *body.layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _teacher_forest(rollouts: Sequence[Rollout], share: bool) -> forest.Forest:
    return forest.build([(r.context, r.response) for r in rollouts], share=share)


def _student_forest(rollouts: Sequence[Rollout], share: bool) -> forest.Forest:
    return forest.build([(r.question, r.response) for r in rollouts], share=share)


def _hidden(lm: nn.Module, packed: forest.Forest, device: torch.device) -> tuple[Tensor, Head]:
    return ForestLM(lm)(packed, plan_attention(packed, device), lambda hidden, head: (hidden, head))


def _with_tail(logp: Tensor) -> Tensor:
    """Append the log of what the words leave over, [T, k] -> [T, k + 1]."""
    return torch.cat([logp, torch.log1p(-logp.exp().sum(-1, keepdim=True))], -1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the generalised JSD of log-distributions [T, K] -> [T], as behaviour 5.2 has it; not the trainer's code."""
    mixture = torch.logaddexp(student + np.log(1 - ALPHA), teacher + np.log(ALPHA))
    return ((1 - ALPHA) * student.exp() * (student - mixture) + ALPHA * teacher.exp() * (teacher - mixture)).sum(-1)


def _random_lm(config: Qwen3Config, seed: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    with device:
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.get_output_embeddings().weight.data.mul_(HEAD_SCALE)
    return lm


class Agreement:
    """Largest relative differences of loss and whole gradient between ways: of all from the first one that comes."""

    def __init__(self) -> None:
        self.first, self.worst = None, {"loss": 0.0, "gradient": 0.0}

    def add(self, loss: float, student: nn.Module) -> None:
        """Compare a way's loss and gradients; those of the first are copied."""
        gradients = [p.grad for p in student.parameters()]
        self.first = self.first or (loss, [g.clone() for g in gradients])
        expected, theirs = self.first
        norm = torch.stack([g.norm() for g in theirs]).norm()
        difference = torch.stack([(a - b).norm() for a, b in zip(gradients, theirs, strict=True)]).norm()
        found = {"loss": abs(loss / expected - 1), "gradient": float(difference / norm)}
        self.worst = {name: float(np.maximum(value, found[name])) for name, value in self.worst.items()}  # NaN stays NaN

    def within(self, tolerance: float) -> bool:
        return all(value <= tolerance for value in self.worst.values())


def compare(settings: Settings) -> dict[str, float]:
    """Return how far apart the ways are on a model of the size's shape with two layers, in float32, on short rollouts.

    Raises ValueError if they disagree on the weights of all draws (one may have a word on the edge of the top k).
    """
    small = replace(settings, groups=2, question=16, prompt_budget=20, response_min=1, response_max=12, dtype="float32")
    for seed in range(DRAWS):
        update, agreement = Update(small, settings.config(num_hidden_layers=2), seed), Agreement()
        for way in settings.ways:
            agreement.add(update.backward(way, update.meter()), update.student)
            update.student.zero_grad()
        if agreement.within(TOLERANCE[torch.float32]):
            return agreement.worst
    raise _disagree(agreement.worst)


def _disagree(found: Any) -> ValueError:
    return ValueError(f"the ways do not compute the same update, so there is nothing to compare: {found}")


def token_counts(update: Update, way: str) -> dict[str, int]:
    """Return how many tokens bodies and heads compute in one update."""
    if way == "padded":
        budget, sequences = update.settings.response_max, len(update.rollouts)
        teacher = sequences * (max(len(r.context) for r in update.rollouts) + budget)
        student = sequences * (update.settings.prompt_width + budget)
        return {"teacher": teacher, "student": student, "teacher_head": teacher, "student_head": student}
    teachers, students = update.forests(share=way == "forest")
    rows = update.response_tokens
    return {"teacher": _tokens(teachers), "student": _tokens(students), "teacher_head": rows, "student_head": rows}


def _tokens(forests: Sequence[forest.Forest]) -> int:
    return sum(len(packed.token_ids) for packed in forests)


def linear_shapes(config: Qwen3Config) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of the linear layers of one block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]


def model_flops(update: Update, config: Qwen3Config) -> dict[str, int]:
    """Return the floating-point operations an update needs, those of the forest, by kind; recomputation is not counted."""
    products = 8 * config.hidden_size * config.vocab_size * update.response_tokens  # 2 logits, 2 gradients
    attention = 0
    for side, passes in zip(update.forests(share=True), (1, 3), strict=True):
        seen = sum(int(packed.positions.sum()) + len(packed.positions) for packed in side)  # each token its path and itself
        products += 2 * passes * config.num_hidden_layers * _tokens(side) * sum(i * o for i, o in linear_shapes(config))
        attention += 4 * passes * config.num_hidden_layers * seen * config.num_attention_heads * config.head_dim
    return {"products": products, "attention": attention}


def floor_seconds(update: Update, config: Qwen3Config) -> dict[str, float]:
    """Run the matrix products of an update; return seconds by phase. One block is run and counted for all; medians of 3 runs."""
    device, dtype = update.device, getattr(torch, update.settings.dtype)
    seconds = dict.fromkeys(("teacher", "student", "head"), 0.0)

    def add(phase: str, times: float, tokens: int, inputs: int, outputs: int, *, forward: int, backward: int) -> None:
        x, w, y = (torch.randn(shape, device=device, dtype=dtype) for shape in ((tokens, inputs), (outputs, inputs), (tokens, outputs)))
        x_gradient, w_gradient = torch.empty_like(x), torch.empty_like(w)
        measured = []
        for _ in range(3):
            meter = update.meter()
            with meter.phase(phase):
                for _ in range(forward):
                    torch.mm(x, w.T, out=y)
                for _ in range(backward):
                    torch.mm(y, w, out=x_gradient)
                    torch.mm(y.T, x, out=w_gradient)
            measured.append(meter.seconds[phase])
        seconds[phase] += times * statistics.median(measured)

    for phase, side, backward in zip(("teacher", "student"), update.forests(share=True), (0, 1), strict=True):
        for packed, (inputs, outputs) in itertools.product(side, linear_shapes(config)):
            add(phase, config.num_hidden_layers, len(packed.token_ids), inputs, outputs, forward=1, backward=backward)
    rows = min(FLOOR_ROWS, update.response_tokens)
    add("head", update.response_tokens / rows, rows, config.hidden_size, config.vocab_size, forward=2, backward=1)
    return seconds


def measure(settings: Settings) -> dict[str, Any]:
    """Check that the ways agree, then time them and the floor in turns; return what the results file holds."""
    config, dtype = settings.config(), getattr(torch, settings.dtype)
    agreement = {"two layers, float32": compare(settings)}
    update = Update(settings, config)
    if update.device.type == "cuda":  # what is compiled or tuned at the first call; what the small models left behind
        torch.cuda.empty_cache()
        for way in settings.ways:
            update.backward(way, update.meter())
            update.student.zero_grad()
    full = Agreement() if dtype == torch.float32 else None  # in bfloat16 there is no room for a second set of gradients
    meters: dict[str, list[Meter]] = {way: [] for way in settings.ways}
    floors, found = [], []
    for number in range(settings.repeats):
        floors.append(floor_seconds(update, config))
        for way in settings.ways if number % 2 == 0 else reversed(settings.ways):
            meter = update.meter()
            loss = update.backward(way, meter)
            if number == 0 and full:
                full.add(loss, update.student)
            with meter.phase("optimizer"):
                norm = update.optimizer.step()
            found.append((way, loss, norm))
            meters[way].append(meter)
        if number == 0 and full:
            agreement["as timed"] = full.worst
            if not full.within(GRADIENT_TOLERANCE):
                raise _disagree(agreement)
            full = None
    spread = float(np.max([abs(run[i] / found[0][i] - 1) for run in found for i in (1, 2)]))
    if not spread <= TOLERANCE[dtype]:
        raise _disagree({"(way, loss, gradient norm) of all runs": found})
    agreement["loss and gradient norm of all runs"] = {"largest": spread}

    floor = {phase: statistics.median(one[phase] for one in floors) for phase in floors[0]}
    flops = model_flops(update, config)
    needed = sum(flops.values())
    gpu = torch.cuda.get_device_name() if update.device.type == "cuda" else ""
    peak_flops = next((value for name, value in PEAK_FLOPS.items() if name in gpu), None)
    ways = {way: _summary(meters[way], floor, update.response_tokens) for way in settings.ways}
    for way, summary in ways.items():
        summary["tokens"] = token_counts(update, way)
        summary["tflops_needed_per_second"] = needed / summary["seconds"]["update"]["median"] / 1e12
        if peak_flops and dtype == torch.bfloat16:
            summary["model_flops_utilisation"] = needed / summary["seconds"]["update"]["median"] / peak_flops
    return {
        "settings": {**asdict(settings), "vocabulary": config.vocab_size, "parameters": update.student.num_parameters()},
        "workload": {
            "response_tokens": update.response_tokens,
            "context_tokens": [len(r.context) for r in update.rollouts],
            "model_flops": flops,
        },
        "agreement": agreement,
        "floor_seconds": {**floor, "update": sum(floor.values())},
        "ways": ways,
        "forest_by_padded": _ratios(meters) if {"forest", "padded"} <= set(settings.ways) else None,
    }


def _summary(meters: Sequence[Meter], floor: dict[str, float], tokens: int) -> dict[str, Any]:
    """Return medians over the repeats of one way."""
    times = [{**meter.seconds, "update": _update_seconds(meter)} for meter in meters]
    seconds = {name: _spread([one[name] for one in times]) for name in times[0]}
    peaks = [peak for meter in meters for peak in meter.peaks.values()]
    return {
        "seconds": seconds,
        "response_tokens_per_second": tokens / seconds["update"]["median"],
        "share_of_floor": {name: value / seconds[name]["median"] for name, value in {**floor, "update": sum(floor.values())}.items()},
        # the whole process's on a CPU; what the update added to the weights and moments that were there
        "peak_bytes": None if None in peaks else max(peaks),
        "peak_bytes_beyond_held": None if None in peaks else max(max(one.peaks.values()) - one.held for one in meters),
    }


def _update_seconds(meter: Meter) -> float:
    return sum(meter.seconds[name] for name in PHASES)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratios(meters: dict[str, list[Meter]]) -> dict[str, float]:
    """Return what the issue's bars speak of: medians over rounds of forest / padded, and of padded / forest for the update."""
    rounds = list(zip(meters["forest"], meters["padded"], strict=True))
    ratios = {f"{name}_time": statistics.median(a.seconds[name] / b.seconds[name] for a, b in rounds) for name in PHASES}
    ratios["update_time"] = statistics.median(_update_seconds(a) / _update_seconds(b) for a, b in rounds)
    return ratios


def report(results: dict[str, Any]) -> Table:
    """Return the results as a table: a column for each way and one for the floor."""
    ways, floor = results["ways"], results["floor_seconds"]
    title = f"{describe(results['settings'])}; {results['workload']['response_tokens']:,} response tokens"
    table = Table("", *ways, "floor", title=title)

    def row(name: str, cells: Callable[[dict[str, Any]], str], last: str = "") -> None:
        table.add_row(name, *(cells(found) for found in ways.values()), last)

    for side in ("teacher", "student"):
        row(f"{side} tokens", lambda found, side=side: f"{found['tokens'][side]:,}")
    for name in (*PHASES, "update"):
        row(f"{name}, s", lambda found, name=name: f"{found['seconds'][name]['median']:.3g}", f"{floor[name]:.3g}" if name in floor else "")
    row("min to max, s", lambda found: "{min:.3g} to {max:.3g}".format_map(found["seconds"]["update"]))
    row("floor's share", lambda found: f"{found['share_of_floor']['update']:.0%}")
    row("response tokens/s", lambda found: f"{found['response_tokens_per_second']:,.0f}")
    row("needed TFLOP/s", lambda found: f"{found['tflops_needed_per_second']:.3g}")
    if any("model_flops_utilisation" in found for found in ways.values()):
        row("model FLOPs utilisation", lambda found: f"{found['model_flops_utilisation']:.1%}")
    if all(found["peak_bytes"] is not None for found in ways.values()):
        row("GiB beyond weights and moments", lambda found: f"{found['peak_bytes_beyond_held'] / 2**30:.2f}")
    return table


def describe(settings: dict[str, Any]) -> str:
    """Return the settings in a line."""
    budget = f" (padded to {settings['prompt_budget']:,})" if settings["prompt_budget"] else ""
    model = "{size}, {vocabulary:,} words, {dtype} on {device}".format_map(settings)
    lengths = "question {question}{budget}, responses {response_min} to {response_max}".format(budget=budget, **settings)
    return f"{model}: {settings['groups']} x {settings['rollouts']} rollouts, {lengths}"


def plot(results: dict[str, Any], file: Path) -> None:
    """Draw the seconds of each way by phase, above the floor."""
    from matplotlib import pyplot as plt

    colours = dict(zip((*PHASES, "old_logp"), ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#999999"), strict=True))
    bars = {way: {name: value["median"] for name, value in found["seconds"].items()} for way, found in results["ways"].items()}
    bars["matrix products alone"] = results["floor_seconds"]
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    ends = dict.fromkeys(bars, 0.0)
    for name, colour in colours.items():
        lengths = [bar.get(name, 0.0) for bar in bars.values()]
        if any(lengths):
            axes.barh(list(bars), lengths, left=list(ends.values()), color=colour, edgecolor="white", label=name)
        ends = {way: end + length for (way, end), length in zip(ends.items(), lengths, strict=True)}
    for row, (way, end) in enumerate(ends.items()):
        more = f" + {bars[way]['old_logp']:.3g}" if "old_logp" in bars[way] else ""
        axes.text(end, row, f" {bars[way]['update']:.3g}{more} s", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("CPU seconds an update" if results["settings"]["cpu_time"] else "seconds an update")
    axes.set_title(describe(results["settings"]), fontsize=8)
    figure.legend(loc="outside lower center", ncols=len(colours), fontsize=8)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options; those of `Settings` by their names there."""
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default=default.size)
    parser.add_argument("--vocabulary", type=int, help="words; default 151,936 for the published sizes, 32,000 for ours")
    parser.add_argument("--groups", type=int, default=default.groups)
    parser.add_argument("--rollouts", type=int, default=default.rollouts, help="of a group; half of them are successes")
    parser.add_argument("--micro-batch", type=int, help="rollouts of one forest; default a whole group")
    parser.add_argument("--question", type=int, default=default.question, help="tokens")
    parser.add_argument("--prompt-budget", type=int, help="tokens the padded way pads student prompts to; default those of the question")
    parser.add_argument("--response-min", type=int, default=default.response_min, help="tokens")
    parser.add_argument("--response-max", type=int, default=default.response_max, help="tokens")
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default.device)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of models, default bfloat16 on cuda; masters and moments are float32"
    )
    parser.add_argument("--checkpointing", action="store_true", help="recompute the student's blocks in its backward pass, in all ways")
    parser.add_argument(
        "--stream-teacher", action="store_true", help="padded: bring the float32 teacher from host memory for every sequence"
    )
    parser.add_argument("--old-logp", action="store_true", help="padded: time the published step's extra pass as well")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--repeats", type=int, default=default.repeats)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--cpu-time", action="store_true", help="count the process's CPU seconds: for a busy machine, with --threads 1")
    parser.add_argument("--out", type=Path)
    return parser.parse_args(arguments)


def main() -> None:
    options = vars(parse())
    torch.set_num_threads(options.pop("threads"))
    out = options.pop("out")
    options["dtype"] = options["dtype"] or ("bfloat16" if options["device"] == "cuda" else "float32")
    settings = Settings(**{**options, "ways": tuple(options["ways"])})
    results = measure(settings)
    file = write_results(f"distill_step_{settings.size}_{settings.device}", results, out)
    Console().print(report(results))
    for name, value in (results["forest_by_padded"] or {}).items():
        print(f"forest / padded, {name.replace('_', ' ')}: {value:.2f}")
    print(file)
    if importlib.util.find_spec("matplotlib"):
        plot(results, file.with_suffix(".png"))
    else:
        print("no plot: matplotlib is not installed")


if __name__ == "__main__":
    main()
