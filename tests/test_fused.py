"""The chunked head: same loss, records and gradients as building all logits at once, whatever the chunk."""

import pytest
import torch

from trainer import fused
from trainer.divergence import token_divergence
from trainer.fused import Head, chunks, head_loss

ROWS, HIDDEN, WORDS = 37, 12, 29


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = {"hidden": (ROWS, HIDDEN), "weight": (WORDS, HIDDEN), "bias": (WORDS,), "teacher": (ROWS, WORDS)}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def loss_of(teacher):
    def chunk_loss(logits, rows):
        values = token_divergence(logits, teacher[rows].to(logits), alpha=0.5, topk=8, add_tail=True)
        weights = torch.arange(rows.start, rows.stop, dtype=logits.dtype)
        return (values * weights).sum(), {"value": values.detach(), "row": torch.arange(rows.start, rows.stop)}

    return chunk_loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000])
def test_gradients_equal_plain_autograd(monkeypatch, chunk, with_bias, softcap):
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", chunk * WORDS)
    parts = case()
    ours = {name: parts[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}
    plain = {name: parts[name].clone().requires_grad_() for name in ("hidden", "weight", "bias")}

    head = Head(ours["weight"], ours["bias"] if with_bias else None, softcap)
    loss, records = head_loss(ours["hidden"], head, loss_of(parts["teacher"]))
    (2 * loss).backward()

    logits = plain["hidden"] @ plain["weight"].T + (plain["bias"] if with_bias else 0)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted, wanted_records = loss_of(parts["teacher"])(logits.float(), slice(0, ROWS))
    (2 * wanted).backward()

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.equal(records["row"], torch.arange(ROWS))
    assert torch.allclose(records["value"], wanted_records["value"], atol=1e-6)
    for name in ("hidden", "weight", *(["bias"] if with_bias else [])):
        assert torch.allclose(ours[name].grad, plain[name].grad, rtol=1e-4, atol=1e-5), name


def test_gradients_only_where_wanted():
    parts = case(torch.float32)
    hidden = parts["hidden"].requires_grad_()
    head_loss(hidden, Head(parts["weight"]), loss_of(parts["teacher"]))[0].backward()
    assert hidden.grad.abs().sum() > 0 and parts["weight"].grad is None
    with torch.no_grad():
        assert head_loss(hidden, Head(parts["weight"]), loss_of(parts["teacher"]))[0] > 0


def test_no_rows_still_reach_every_gradient():
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    weight = torch.zeros(WORDS, HIDDEN, requires_grad=True)
    loss, records = head_loss(hidden, Head(weight), loss_of(torch.zeros(0, WORDS)))
    loss.backward()
    assert loss == 0 and records == {} and weight.grad.abs().sum() == 0 and hidden.grad.shape == (0, HIDDEN)


def test_bfloat16_hidden_states_get_float32_logits():
    parts = case(torch.bfloat16)
    seen = []

    def chunk_loss(logits, rows):
        seen.append(logits.dtype)
        return logits.square().sum(), {}

    weight = parts["weight"].requires_grad_()
    head_loss(parts["hidden"], Head(weight), chunk_loss)[0].backward()
    assert seen == [torch.float32] and weight.grad.dtype == torch.bfloat16


def test_chunks_cover_all_rows_once():
    for rows in (0, 1, 7, 8, 9):
        assert [i for part in chunks(rows, fused.CHUNK_ELEMENTS // 4) for i in range(part.start, part.stop)] == list(range(rows))
