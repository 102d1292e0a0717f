"""A small model for a run on real SciKnowEval questions where no language model can be had.

    python -m experiments.sciknoweval.make_model --data datasets/sciknoweval/chemistry --out models/sciknoweval-small

A byte-level BPE tokenizer trained on the prompts, a Qwen3 of a million parameters, and a warm-up that teaches the
answer format only: a line of reasoning that says nothing and a random letter, so about a quarter of its rollouts pass
by chance and groups are mixed. It knows no chemistry and learns none: the run shows that real prompts, a real
tokenizer and the real verifier go through every part.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from experiments.tiny.base import Example, Shape, WarmUp, example, warm_up
from trainer.chat import Chat

LETTERS = "ABCD"
REASONS = (
    "Option {x} fits the question best.",
    "Comparing the options, {x} is the most plausible.",
    "The others can be ruled out, which leaves {x}.",
    "From what is known of such compounds, {x} follows.",
)
# As Qwen3's template: an empty think block where thinking is off
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def train_tokenizer(folder: Path, texts: list[str], words: int) -> None:
    """Write a byte-level BPE tokenizer of `words` tokens trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def respond(rng: np.random.Generator) -> str:
    """Return a response in the asked format with a random letter."""
    letter = str(rng.choice(list(LETTERS)))
    reason = str(rng.choice(REASONS)).format(x=letter)
    return f"<reasoning>\n{reason}\n</reasoning>\n<answer>\n{letter}\n</answer>"


def make(data: Path, out: Path, *, steps: int, words: int = 2048) -> None:
    """Make the model from DATA/train.parquet; an existing one is kept."""
    if (out / "config.json").is_file():
        return
    prompts = pq.read_table(data / "train.parquet", columns=["prompt"])["prompt"].to_pylist()
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = [message["content"] for prompt in prompts for message in prompt]
    train_tokenizer(partial, [*contents, *(respond(rng) for _ in range(200))], words)
    chat = Chat(PreTrainedTokenizerFast.from_pretrained(partial), {"enable_thinking": False})

    def draw(rng: np.random.Generator) -> Example:
        return example(chat, chat.prompt_ids(prompts[rng.integers(len(prompts))]), respond(rng))

    warm_up(partial, chat, Shape(), WarmUp(steps=steps, batch=8, lr=4e-3), draw, "teaching the answer format")
    partial.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=120, help="warm-up steps")
    options = parser.parse_args()
    make(options.data, options.out, steps=options.steps)


if __name__ == "__main__":
    main()
