"""A word-level tokenizer that covers the tiny tasks and the trainer's own templates, without loss on them."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.config.schema import SelfDistillation
from trainer.peers.render import CUT_MARK

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>")
PIECE = r" ?[A-Za-z]+| ?[0-9]+|\s|[^\sA-Za-z0-9]"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(folder: Path, texts: list[str], distill: SelfDistillation) -> None:
    """Write a tokenizer whose words are those of `texts`, of the chat frame and of the peer templates."""
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    frame = ["user\nassistant\nsystem", CUT_MARK]
    templates = [getattr(distill, name) for name in vars(distill) if name.endswith("_template")]
    words = dict.fromkeys(piece for text in [*frame, *templates, *texts] for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
