"""Names people write and mean, padded vocabularies, and the assistant header of a template."""

import shutil
from types import SimpleNamespace

import pytest

from tests.tools import make_random_model
from trainer import models
from trainer.errors import UserError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Qwen/Qwen3-14B-Instruct", "Qwen/Qwen3-14B"),
        ("Qwen/Qwen3-4B-Instruct-2508", "Qwen/Qwen3-4B-Instruct-2507"),
        ("qwen3-4b", "Qwen/Qwen3-4B"),
        ("Qwen/Qwen2.5-7B-Instrct", "Qwen/Qwen2.5-7B-Instruct"),
        ("someone/entirely-else", None),
    ],
)
def test_nearest_published_name(written, meant):
    assert models.nearest_model(written) == meant


def test_a_path_that_is_no_model_names_key_value_and_remedy(random_model, tmp_path):
    with pytest.raises(UserError, match=r"model\.path=Qwen/Qwen3-14B-Instruct: neither a folder .* Did you mean Qwen/Qwen3-14B\?"):
        models.resolve("Qwen/Qwen3-14B-Instruct", "model.path")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        models.resolve(str(tmp_path), "model.path")
    shutil.copytree(random_model, tmp_path / "huggingface")
    with pytest.raises(UserError, match=f"its weights are in {tmp_path}/huggingface"):
        models.resolve(str(tmp_path), "model.path")


def test_a_folder_that_is_no_whole_model_says_what_is_wrong(random_model, tmp_path):
    fingerprint = models.check_weights(str(random_model), "model.path")
    assert fingerprint == models.check_weights(str(random_model), "model.path") != ""
    assert models.check_weights(str(make_random_model(tmp_path / "other", seed=1)), "model.path") != fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(random_model, copy)
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is no whole safetensors file"):
        models.check_weights(str(copy), "model.path")
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no weights"):
        models.check_weights(str(copy), "model.path")
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"its config\.json cannot be used"):
        models.resolve(str(copy), "model.path")
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        models.load_chat(str(copy), {})
    with pytest.raises(UserError, match="nowhere: no such folder"):
        models.resolve(str(tmp_path / "nowhere"), "model.path")


def test_a_broken_chat_template_is_named(random_model, tmp_path):
    shutil.copytree(random_model, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("chat_template*"):
        file.write_text("{% for message in %}")
    with pytest.raises(UserError, match="its chat template is broken"):
        models.load_chat(str(tmp_path / "copy"), {})


def test_vocabularies(random_model, tmp_path):
    chat = models.load_chat(str(random_model), {})
    own, padded = SimpleNamespace(vocab_size=100), SimpleNamespace(vocab_size=128)
    assert models.check_same_vocabulary(chat, chat, own, own) is None
    assert "over the common 100" in models.check_same_vocabulary(chat, chat, own, padded)
    other = models.load_chat(str(make_random_model(tmp_path / "other", words=("more",))), {})
    with pytest.raises(UserError, match="different vocabularies"):
        models.check_same_vocabulary(chat, other, own, own)


def test_attention_the_forest_does_not_cover_is_refused():
    models.check_architecture(SimpleNamespace(model_type="qwen3", layer_types=["full_attention"] * 2), "model.path")
    with pytest.raises(UserError, match=r"model\.path: gpt_oss has full_attention, sliding_attention layers"):
        models.check_architecture(SimpleNamespace(model_type="gpt_oss", layer_types=["full_attention", "sliding_attention"]), "model.path")
    with pytest.raises(UserError, match="soft-caps"):
        models.check_architecture(SimpleNamespace(model_type="gemma2", attn_logit_softcapping=50.0), "model.path")
