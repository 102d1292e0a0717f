"""The chunked head: same loss, records and gradients as building all logits at once in float64, whatever the chunk."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import plain_scores
from trainer import fused
from trainer.divergence import Divergence
from trainer.fused import Head, chunks, fused_divergence, head_loss, sampled_logp
from trainer.scores import Block

ROWS, HIDDEN, TEACHER_HIDDEN, WORDS = 37, 12, 7, 29
SPECS = [Divergence(alpha, topk, tail) for alpha in (0, 0.25, 0.5, 1) for topk, tail in ((8, True), (8, False), (1, True), (None, True))]


def case(dtype=torch.float64, *, teacher_words: int = WORDS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden": (ROWS, HIDDEN),
        "weight": (WORDS, HIDDEN),
        "bias": (WORDS,),
        "teacher_hidden": (ROWS, TEACHER_HIDDEN),
        "teacher_weight": (teacher_words, TEACHER_HIDDEN),
        "weights": (ROWS,),
    }
    parts = {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}
    return parts | {"targets": torch.randint(0, min(WORDS, teacher_words), (ROWS,), generator=generator)}


def leaves(parts: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: parts[name].to(dtype, copy=True).requires_grad_() for name in ("hidden", "weight", "bias")}


def every_score(scores, rows):
    """A loss with a gradient in everything a loss may use."""
    position = torch.arange(rows.start, rows.stop, dtype=scores.entropy.dtype)
    loss = (scores.student_logp.exp() * position).sum() - 0.3 * (scores.entropy * position.cos()).sum()
    if scores.divergence is not None:
        loss = loss + (scores.divergence * (1 + position)).sum()
    return loss, {**scores.as_dict(), "row": torch.arange(rows.start, rows.stop)}


def only_divergence(scores, rows):
    return (scores.divergence * torch.arange(1 + rows.start, 1 + rows.stop)).sum(), scores.as_dict()


def plainly(parts, loss, spec, *, with_bias=False, softcap=None, temperature=1.0, second=True):
    """Loss, records and gradients from whole logits, float64."""
    ours = leaves(parts, torch.float64)
    logits = ours["hidden"] @ ours["weight"].T + (ours["bias"] if with_bias else 0)
    theirs = parts["teacher_hidden"].double() @ parts["teacher_weight"].double().T if second else None
    logits, theirs = (z if z is None or softcap is None else softcap * torch.tanh(z / softcap) for z in (logits, theirs))
    theirs = theirs if theirs is None else theirs / temperature
    value, records = loss(plain_scores(logits / temperature, theirs, parts["targets"], spec), slice(0, ROWS))
    (2 * value).backward()
    return value.detach(), records, {name: leaf.grad for name, leaf in ours.items() if leaf.grad is not None}


def fused_way(parts, loss, spec, *, with_bias=False, softcap=None, temperature=1.0, second=True, chunk=None, dtype=torch.float64):
    ours = leaves(parts, dtype)
    head = Head(ours["weight"], ours["bias"] if with_bias else None, softcap)
    teacher = (parts["teacher_hidden"].to(dtype), Head(parts["teacher_weight"].to(dtype), None, softcap))
    value, records = head_loss(
        ours["hidden"],
        head,
        loss,
        targets=parts["targets"],
        second=teacher if second else None,
        divergence=spec,
        temperature=temperature,
        chunk=chunk,
    )
    (2 * value).backward()
    return value.detach(), records, {name: leaf.grad for name, leaf in ours.items() if leaf.grad is not None}


def assert_same(got, wanted, rel: float) -> None:
    assert got[0].item() == pytest.approx(wanted[0].item(), rel=rel)
    assert got[1].keys() == wanted[1].keys() and got[2].keys() == wanted[2].keys()
    for mine, theirs in ((got[1], wanted[1]), (got[2], wanted[2])):
        for name in theirs:
            assert (mine[name] - theirs[name]).abs().max() <= rel * max(theirs[name].abs().max(), 1e-3), name


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("loss", [only_divergence, every_score])
def test_equals_autograd_of_the_definition(spec, loss):
    assert_same(fused_way(case(), loss, spec, chunk=5), plainly(case(), loss, spec), rel=1e-10)
    # float32 beside float64 autograd: the bar of issue 5
    assert_same(fused_way(case(), loss, spec, dtype=torch.float32), plainly(case(), loss, spec), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
def test_the_chunk_does_not_matter(monkeypatch, chunk):
    monkeypatch.setattr(fused, "CPU_BLOCK", 3 * WORDS)  # and blocks within chunks
    for spec in (Divergence(0.5, 8), Divergence(0.5, None)):
        assert_same(fused_way(case(), every_score, spec, chunk=chunk), plainly(case(), every_score, spec), rel=1e-10)


@pytest.mark.parametrize(("softcap", "with_bias", "temperature"), itertools.product([None, 3.0], [False, True], [1.0, 0.7]))
@pytest.mark.parametrize(("second", "spec"), [(True, Divergence(0.5, 8)), (True, Divergence(0.5, None)), (True, None), (False, None)])
def test_soft_caps_biases_and_temperatures(softcap, with_bias, temperature, second, spec):
    options = {"softcap": softcap, "with_bias": with_bias, "temperature": temperature, "second": second}
    assert_same(fused_way(case(), every_score, spec, chunk=10, **options), plainly(case(), every_score, spec, **options), rel=1e-10)


@pytest.mark.parametrize("teacher_words", [WORDS - 4, WORDS + 4])
@pytest.mark.parametrize("spec", [Divergence(0.5, 8), Divergence(0.5, 8, False), Divergence(0.25, None)], ids=str)
def test_differently_padded_vocabularies_are_compared_over_the_common_words(spec, teacher_words):
    parts = case(teacher_words=teacher_words)
    assert_same(fused_way(parts, every_score, spec, chunk=10), plainly(parts, every_score, spec), rel=1e-10)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_logits_far_apart(spec):
    """Probabilities that vanish in float32: the tail is exact, nothing is NaN, alpha 0 sees what the student rules out."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(20, WORDS, generator=generator) * 100 for _ in range(2))
    targets = torch.zeros(20, dtype=torch.int64)
    leaf = student.double().requires_grad_()
    wanted = plain_scores(leaf, teacher.double(), targets, spec)
    wanted.divergence.sum().backward()
    block, gradient = Block(student, teacher.clone(), targets, spec), torch.empty_like(student)
    block.gradient({"divergence": torch.ones(20)}, gradient)
    assert (student.softmax(-1) == 0).any()
    for name, value in block.scores.as_dict().items():
        assert torch.allclose(value.double(), wanted.as_dict()[name], rtol=1e-5, atol=1e-5), name
    assert (gradient - leaf.grad).abs().max() < 1e-5 * (1 + wanted.divergence.max())  # logits of 300 have a resolution of 3e-5


@given(st.integers(0, 10_000), st.sampled_from(SPECS), st.floats(0.1, 30))
def test_random_logits(seed, spec, spread):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(5, 11, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    targets = torch.randint(0, 11, (5,), generator=generator)
    leaf = student.clone().requires_grad_()
    wanted = plain_scores(leaf, teacher, targets, spec)
    sum(wanted.as_dict()[name].sum() for name in fused.DIFFERENTIABLE).backward()
    block, gradient = Block(student, teacher.clone(), targets, spec), torch.empty(5, 11, dtype=torch.float64)
    block.gradient({name: torch.ones(5, dtype=torch.float64) for name in fused.DIFFERENTIABLE}, gradient)
    for name, value in block.scores.as_dict().items():
        assert torch.allclose(value, wanted.as_dict()[name], rtol=1e-9, atol=1e-12), name
    assert torch.allclose(gradient, leaf.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_words_that_both_models_rule_out(spec):
    student = torch.tensor([[1.0, 2.0, -math.inf, 0.5, -math.inf], [0.0, -math.inf, -math.inf, -math.inf, -math.inf]], dtype=torch.float64)
    teacher = torch.tensor([[2.0, 0.0, -math.inf, 1.0, -math.inf], [1.0, -math.inf, -math.inf, -math.inf, -math.inf]], dtype=torch.float64)
    block = Block(student, teacher.clone(), torch.zeros(2, dtype=torch.int64), spec)
    gradient = torch.empty_like(student)
    block.gradient({name: torch.ones(2, dtype=torch.float64) for name in fused.DIFFERENTIABLE}, gradient)
    for row, words in ((0, [0, 1, 3]), (1, [0])):
        alone = plain_scores(student[row, None, words], teacher[row, None, words], torch.zeros(1, dtype=torch.int64), spec)
        for name, value in alone.as_dict().items():
            assert block.scores.as_dict()[name][row].item() == pytest.approx(value.item(), abs=1e-12), name
    assert gradient.isfinite().all() and (gradient[student.isneginf()] == 0).all() and gradient[1].abs().max() < 1e-12


def test_what_the_student_rules_out_and_the_teacher_wants_is_infinitely_far():
    student, teacher = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]]), torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    for spec in (Divergence(0, None), Divergence(0, 2)):
        assert Block(student, teacher.clone(), torch.zeros(1, dtype=torch.int64), spec).scores.divergence.item() == math.inf


@pytest.mark.parametrize("topk", [8, None])
def test_fused_divergence_says_what_metrics_want(topk):
    parts, spec = case(torch.float32), Divergence(0.25, topk)
    hidden, weight = parts["hidden"].requires_grad_(), parts["weight"].requires_grad_()
    got = fused_divergence(
        hidden,
        parts["teacher_hidden"],
        weight,
        Head(parts["teacher_weight"]),
        alpha=0.25,
        topk=topk,
        weights=parts["weights"],
        temperature=0.7,
        chunk=10,
        targets=parts["targets"],
    )
    got.loss.backward()
    logits, theirs = hidden.detach() @ weight.detach().T / 0.7, parts["teacher_hidden"] @ parts["teacher_weight"].T / 0.7
    wanted = plain_scores(logits, theirs, parts["targets"], spec)
    assert got.loss.item() == pytest.approx((wanted.divergence * parts["weights"]).sum().item(), rel=1e-5)
    for name, value in (
        ("per_token", wanted.divergence),
        ("student_logp", wanted.student_logp),
        ("teacher_logp", wanted.second_logp),
        ("student_entropy", wanted.entropy),
        ("topk_mass", wanted.topk_mass),
    ):
        assert torch.allclose(getattr(got, name), value, atol=1e-5), name
    assert hidden.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0
    bare = fused_divergence(hidden, parts["teacher_hidden"], weight, parts["teacher_weight"], topk=topk)
    assert bare.student_logp is None and bare.teacher_logp is None


def test_a_tied_head_gets_the_gradients_of_both_its_uses():
    parts, embedding, ids = case(), case()["weight"].requires_grad_(), torch.arange(ROWS) % WORDS
    spec = Divergence(0.5, 8)
    value, _ = head_loss(
        embedding[ids].tanh(),
        Head(embedding),
        only_divergence,
        targets=parts["targets"],
        second=(parts["teacher_hidden"], Head(parts["teacher_weight"])),
        divergence=spec,
    )
    value.backward()
    plain = parts["weight"].clone().requires_grad_()
    theirs = parts["teacher_hidden"] @ parts["teacher_weight"].T
    only_divergence(plain_scores(plain[ids].tanh() @ plain.T, theirs, parts["targets"], spec), slice(0, ROWS))[0].backward()
    assert torch.allclose(embedding.grad, plain.grad, rtol=1e-9, atol=1e-12)


def test_gradients_only_where_wanted():
    parts = case(torch.float32)
    hidden = parts["hidden"].requires_grad_()

    def loss() -> torch.Tensor:
        return head_loss(hidden, Head(parts["weight"]), every_score, targets=parts["targets"])[0]

    loss().backward()
    assert hidden.grad.abs().sum() > 0 and parts["weight"].grad is None
    with torch.no_grad():
        value = loss()
        assert value.isfinite() and not value.requires_grad


def test_gradients_are_handed_on_once():
    """Without a copy of the head's gradient; a second backward pass says so instead of giving something else."""
    parts = case(torch.float32)
    loss = head_loss(parts["hidden"].requires_grad_(), Head(parts["weight"]), every_score, targets=parts["targets"])[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_no_rows_still_reach_every_gradient():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.zeros(WORDS, HIDDEN, requires_grad=True)
    teacher = (torch.zeros(0, TEACHER_HIDDEN), Head(torch.zeros(WORDS, TEACHER_HIDDEN)))
    targets = torch.zeros(0, dtype=torch.int64)
    loss, records = head_loss(hidden, Head(weight), only_divergence, targets=targets, second=teacher, divergence=Divergence())
    loss.backward()
    assert loss == 0 and records == {} and weight.grad.abs().sum() == 0 and hidden.grad.shape == (0, HIDDEN)
    assert len(fused_divergence(hidden, teacher[0], weight, teacher[1]).per_token) == 0


def test_bfloat16_hidden_states_get_float32_softmax():
    parts = case(torch.bfloat16)
    weight, hidden = parts["weight"].requires_grad_(), parts["hidden"].requires_grad_()
    teacher = Head(parts["teacher_weight"])
    got = fused_divergence(hidden, parts["teacher_hidden"], weight, teacher, topk=8, targets=parts["targets"])
    got.loss.backward()
    assert got.per_token.dtype == got.loss.dtype == torch.float32 and weight.grad.dtype == hidden.grad.dtype == torch.bfloat16
    logits, theirs = (hidden @ weight.T).detach().float(), (parts["teacher_hidden"] @ parts["teacher_weight"].T).float()
    wanted = plain_scores(logits, theirs, parts["targets"], Divergence(0.5, 8))  # of the same rounded logits
    assert torch.allclose(got.per_token, wanted.divergence, atol=1e-6)


def test_sampled_logp_is_that_of_the_scores():
    parts = case()
    wanted = plain_scores(parts["hidden"] @ parts["weight"].T / 0.7, None, parts["targets"], None).student_logp
    assert torch.allclose(sampled_logp(parts["hidden"], Head(parts["weight"]), parts["targets"], 0.7, chunk=5), wanted)


def test_chunks_cover_all_rows_once():
    for rows in (0, 1, 7, 8, 9):
        assert [i for part in chunks(rows, 4) for i in range(part.start, part.stop)] == list(range(rows))


@pytest.mark.parametrize("option", [{"alpha": -0.1}, {"alpha": 1.5}, {"topk": 0}])
def test_values_out_of_range_are_refused(option):
    parts = case(torch.float32)
    with pytest.raises(ValueError, match="must"):
        fused_divergence(parts["hidden"], parts["teacher_hidden"], parts["weight"], parts["teacher_weight"], **option)
