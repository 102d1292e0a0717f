"""The divergence of student and teacher over a large vocabulary: fused, plain, Liger's, and the matrix products neither can avoid.

    python -m benchmarks.divergence [--tokens 2048] [--hidden 1024] [--words 151936] [--repeats 3] [--device cuda --dtype bfloat16]

Forward and backward, gradients of the student's hidden states and head included. The ways run one after the other in
every repeat, so that all see the machine in the same state; ratios are medians of ratios within a repeat. Memory is
what a way holds at its peak beyond its inputs and the gradients it returns.

`plain` builds all logits, takes both log-softmaxes, gathers the student's top k with a tail, and lets autograd do the
rest. `floor` is the four matrix products alone (both heads, gradient of hidden states and of the head), in chunks of
the same size. Liger's fused JSD (exact, full vocabulary, alpha 0.5) is measured where liger-kernel is installed.
Needs torch, transformers and matplotlib alone.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.tools import PeakMemory, write_results
from trainer.fused import chunks, default_chunk, fused_divergence
from trainer.machine import cores

Way = Callable[["Case"], Tensor | None]  # runs forward and backward; returns the loss
TOPK = 100


class Case:
    """Random hidden states [T, H] and heads [V, H] of a student and a teacher not far from it."""

    def __init__(self, tokens: int, hidden: int, words: int, device: str, dtype: torch.dtype, chunk: int | None) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        self.student, self.head = normal(tokens, hidden), normal(words, hidden).mul_(2 / hidden**0.5)
        self.teacher, self.teacher_head = self.student + 0.3 * normal(tokens, hidden), self.head + 0.01 * normal(words, hidden)
        self.targets = torch.randint(0, words, (tokens,), generator=generator, device=device)
        self.chunk = chunk or default_chunk(words)

    def leaves(self) -> tuple[Tensor, Tensor]:
        self.student.grad = self.head.grad = None
        return self.student.requires_grad_(), self.head.requires_grad_()


def fused(case: Case, topk: int | None = TOPK) -> Tensor:
    student, head = case.leaves()
    out = fused_divergence(student, case.teacher, head, case.teacher_head, topk=topk, chunk=case.chunk, targets=case.targets)
    out.loss.backward()
    return out.loss.detach()


def fused_exact(case: Case) -> Tensor:
    return fused(case, topk=None)


def plain(case: Case) -> Tensor:
    """Full logits, alpha 0.5, top k and tail, each line as one would write it first."""
    student, head = case.leaves()
    logp = (student @ head.T).float().log_softmax(-1)
    with torch.no_grad():
        teacher_logp = (case.teacher @ case.teacher_head.T).float().log_softmax(-1)
    words = logp.detach().topk(TOPK, -1).indices
    p, q = with_tail(logp.gather(-1, words)), with_tail(teacher_logp.gather(-1, words))
    m = torch.logaddexp(p, q) - np.log(2)
    loss = 0.5 * ((p.exp() * (p - m)).sum() + (q.exp() * (q - m)).sum())
    loss.backward()
    return loss.detach()


def with_tail(top: Tensor) -> Tensor:
    tail = torch.log(-torch.expm1(top.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))
    return torch.cat([top, tail], -1)


def floor(case: Case) -> None:
    """The matrix products alone: two heads forward, one gradient of hidden states, one of the head."""
    case.student.grad = case.head.grad = None
    student, head, teacher, teacher_head = (x.detach() for x in (case.student, case.head, case.teacher, case.teacher_head))
    size = min(case.chunk, len(student))
    logits = student.new_empty(size, len(head))
    hidden_grad, head_grad = torch.zeros_like(student), torch.zeros_like(head)
    for rows in chunks(len(student), size):
        n = rows.stop - rows.start
        torch.mm(teacher[rows], teacher_head.T, out=logits[:n])
        torch.mm(student[rows], head.T, out=logits[:n])
        torch.mm(logits[:n], head, out=hidden_grad[rows])
        head_grad.addmm_(logits[:n].T, student[rows])


def liger(case: Case) -> Tensor:
    """Liger's chunked JSD without its cross-entropy part; it averages over tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    student, head = case.leaves()
    compiled = student.is_cuda
    jsd = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compiled, chunk_size=case.chunk)
    loss = jsd(student, head, case.teacher, case.teacher_head, case.targets)
    loss = (loss[0] if isinstance(loss, tuple) else loss) * len(student)
    loss.backward()
    return loss.detach()


WAYS: dict[str, Way] = {"floor": floor, "fused": fused, "fused, exact": fused_exact, "plain": plain}
if importlib.util.find_spec("liger_kernel"):
    WAYS["liger, exact"] = liger


def seconds(way: Way, case: Case, cpu_time: bool) -> float:
    """Return how long a way takes: wall time, or the processor time of all threads."""

    def now() -> float:
        if case.student.is_cuda:
            torch.cuda.synchronize()
        return time.process_time() if cpu_time else time.perf_counter()

    start = now()
    way(case)
    return now() - start


def extra_memory(way: Way, case: Case) -> int | None:
    """Return the bytes a way holds at its peak beyond inputs and returned gradients."""
    case.student.grad = case.head.grad = None
    memory = PeakMemory(case.student.device)
    memory.reset()
    before = memory.peak()
    way(case)
    after = memory.peak()
    kept = sum(x.grad.nbytes for x in (case.student, case.head) if x.grad is not None)
    kept = kept or case.student.nbytes + case.head.nbytes  # the floor's gradients are not kept
    return None if after is None else after - before - kept


def check(case: Case) -> None:
    """Raise AssertionError unless all ways compute what they should: a benchmark of something wrong is worth nothing."""
    wanted = plain(case)
    gradients = [case.student.grad.clone(), case.head.grad.clone()]
    got = fused(case)
    tolerance = 1e-4 if case.student.dtype == torch.float32 else 0.05
    assert abs(got - wanted) <= tolerance * abs(wanted), (got, wanted)
    for name, mine, theirs in zip(("hidden", "head"), (case.student.grad, case.head.grad), gradients, strict=True):
        assert (mine - theirs).norm() <= tolerance * 10 * theirs.norm(), name
    if "liger, exact" in WAYS:
        exact, other = fused_exact(case), liger(case)
        assert abs(exact - other) <= max(tolerance, 1e-3) * abs(exact), (exact, other)


def measure(options: argparse.Namespace) -> dict:
    """Return seconds of every way at `tokens`, and extra memory over several numbers of tokens."""
    dtype = getattr(torch, options.dtype)

    def case_of(tokens: int) -> Case:
        return Case(tokens, options.hidden, options.words, options.device, dtype, options.chunk)

    check(case_of(min(64, options.tokens)))  # which warms threads and allocator too
    case = case_of(options.tokens)
    times = {name: [] for name in WAYS}
    for _ in range(options.repeats):
        for name, way in WAYS.items():
            times[name].append(seconds(way, case, options.cpu_time))
    memory: dict[str, dict[int, int | None]] = {name: {} for name in WAYS}
    for tokens in sorted({*options.memory_tokens, options.tokens}):
        for name, way in WAYS.items():
            if name != "fused" and tokens > options.plain_tokens:
                continue
            case = None  # the inputs before go first
            case = case_of(tokens)
            memory[name][tokens] = extra_memory(way, case)

    def ratio(name: str, to: str) -> float:
        return float(np.median(np.array(times[name]) / np.array(times[to])))

    return {
        "settings": {name: value for name, value in vars(options).items() if name != "out"} | {"chunk": case.chunk, "topk": TOPK},
        "seconds": {name: {"median": float(np.median(t)), "min": min(t), "max": max(t)} for name, t in times.items()},
        "tokens_per_second": {name: options.tokens / float(np.median(t)) for name, t in times.items()},
        "by_floor": {name: ratio(name, "floor") for name in WAYS},
        "by_plain": {name: ratio(name, "plain") for name in WAYS},
        "extra_bytes": memory,
    }


def plot(results: dict, file: Path) -> None:
    """Draw seconds of each way and extra memory over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(results["seconds"], ("#777777", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7"), strict=False))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, t in results["seconds"].items():
        left.barh(name, t["median"], color=colours[name], xerr=[[t["median"] - t["min"]], [t["max"] - t["median"]]])
    left.invert_yaxis()
    left.set_xlabel(f"seconds, {results['settings']['tokens']:,} tokens, forward and backward")
    for name, points in results["extra_bytes"].items():
        known = {tokens: value for tokens, value in points.items() if value is not None}
        right.plot(list(known), [value / 1e9 for value in known.values()], marker="o", label=name, color=colours[name])
    right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="GB beyond inputs and gradients")
    right.set_xticks(sorted({t for points in results["extra_bytes"].values() for t in points}))
    right.get_xaxis().set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
    right.minorticks_off()
    right.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--words", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--memory-tokens", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--plain-tokens", type=int, default=2048, help="the most tokens of which the memory of the other ways is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time: for a machine that is busy, with --threads 1"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    torch.set_num_threads(options.threads)
    results = measure(options)

    table = Table(
        "way",
        "seconds (median)",
        "by the floor",
        "by plain",
        *(f"GB extra, {tokens:,}" for tokens in results["extra_bytes"]["fused"]),
        title=f"{options.tokens:,} tokens, H = {options.hidden:,}, V = {options.words:,}, {options.dtype}, {options.device}",
    )
    for name in WAYS:
        extra = results["extra_bytes"][name]
        cells = ("-" if extra.get(t) is None else f"{extra[t] / 1e9:.2f}" for t in results["extra_bytes"]["fused"])
        table.add_row(
            name,
            f"{results['seconds'][name]['median']:.2f}",
            f"{results['by_floor'][name]:.2f}x",
            f"{results['by_plain'][name]:.2f}x",
            *cells,
        )
    Console().print(table)
    file = write_results(f"divergence_{options.device}", results, options.out)
    plot(results, file.with_suffix(".png"))
    print(file)


if __name__ == "__main__":
    main()
