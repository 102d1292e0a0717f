"""Finding, checking and building models and tokenizers. Nothing here loads weights before the checks have passed."""

import difflib
import functools
import hashlib
import json
import os
import socket
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.chat import Chat
from trainer.errors import UserError
from trainer.forest import Forest
from trainer.fused import Head

if TYPE_CHECKING:
    from trainer.attention import AttentionPlan

SAMPLES, SAMPLE_BYTES = 64, 4096  # of each weights file, for its fingerprint

# Published names people mean when they write something near them.
KNOWN_MODELS = (
    *(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B")),
    *(f"Qwen/Qwen3-{size}-Base" for size in ("0.6B", "1.7B", "4B", "8B", "14B")),
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-4B-Thinking-2507",
    *(f"Qwen/Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B")),
    *(f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "3B", "7B", "14B")),
    "allenai/Olmo-3-7B-Instruct",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
)


def resolve(path: str, key: str, *, trust_remote_code: bool = False) -> Any:
    """Return the model's configuration; raise UserError naming `key` if `path` is neither a folder nor resolvable."""
    from transformers import AutoConfig

    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{key}={path}: this folder holds no config.json, so it is no model folder{_hint_in(folder)}.")
    offline = not folder.is_dir() and not _hub_answers()  # else every attempt would be retried for half a minute
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=offline)
    except (OSError, ValueError) as error:
        near = nearest_model(path)
        hint = f" Did you mean {near}?" if near and near != path else ""
        reason = "the model hub does not answer and the model is not in its cache" if offline else str(error).strip().splitlines()[0]
        if folder.is_dir():
            raise UserError(f"{key}={path}: its config.json cannot be used ({reason}).") from None
        if folder.is_absolute() or path.startswith("."):
            raise UserError(f"{key}={path}: no such folder.") from None
        raise UserError(
            f"{key}={path}: neither a folder here nor a model that can be fetched ({reason}).{hint} "
            f"Where the network is: hf download {near or path}"
        ) from None


def nearest_model(path: str) -> str | None:
    """Return the published name someone who wrote `path` most likely meant, or None."""
    wanted = path.lower().rsplit("/", 1)[-1]
    bare = {name.lower().rsplit("/", 1)[-1]: name for name in KNOWN_MODELS}
    misspelt = difflib.get_close_matches(wanted, bare, n=1, cutoff=0.9)
    with_more = sorted((name for name in bare if wanted.startswith(name)), key=len, reverse=True)
    similar = difflib.get_close_matches(wanted, bare, n=1, cutoff=0.75)
    return next((bare[name] for name in (*misspelt, *with_more, *similar)), None)


@functools.cache
def _hub_answers() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy can tell
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or (443 if address.scheme == "https" else 80)), timeout=5).close()
    except OSError:
        return False
    return True


def _hint_in(folder: Path) -> str:
    for inner in ("huggingface", "actor/huggingface"):
        if (folder / inner / "config.json").is_file():
            return f"; its weights are in {folder / inner}"
    return ""


def load_chat(path: str, template_kwargs: dict[str, Any], *, trust_remote_code: bool = False) -> Chat:
    """Return the tokenizer of a model folder or hub name with the run's chat template arguments."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001  whatever a broken file makes the library raise
        raise UserError(f"actor_rollout_ref.model.path={path}: its tokenizer cannot be loaded ({type(error).__name__}: {error}).") from None
    if not len(tokenizer):
        raise UserError(f"actor_rollout_ref.model.path={path}: its tokenizer has no words; tokenizer.json is missing there.")
    if tokenizer.chat_template is None:
        raise UserError(
            f"actor_rollout_ref.model.path={path}: its tokenizer has no chat template, so prompts cannot be rendered; "
            "use an instruct model or add one."
        )
    if not tokenizer.is_fast:
        raise UserError(f"actor_rollout_ref.model.path={path}: it has no fast tokenizer, which cutting peers by tokens needs.")
    chat = Chat(tokenizer, template_kwargs)
    try:
        chat.assistant_header()
    except jinja2.TemplateError as error:
        raise UserError(f"actor_rollout_ref.model.path={path}: its chat template is broken ({error}).") from None
    return chat


def check_weights(path: str, key: str) -> str:
    """Return a fingerprint of a local model's weights (of their shapes and of bytes from all over them, not of all bytes).

    Empty for a hub name, whose files may not be here yet. Raises UserError if the folder's weights are missing or cut off.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ""
    files = sorted(folder.glob("*.safetensors"))
    if not files and not list(folder.glob("*.bin")):
        raise UserError(f"{key}={path}: this folder holds no weights (*.safetensors); copy it again.")
    digest = hashlib.sha256()
    for file in files:
        try:
            with safe_open(file, framework="np") as held:
                digest.update(repr([(name, held.get_slice(name).get_shape()) for name in sorted(held.keys())]).encode())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{key}={path}: {file.name} is no whole safetensors file ({error}); copy it again.") from None
        with file.open("rb") as content:
            for at in range(SAMPLES):
                content.seek(file.stat().st_size * at // SAMPLES)
                digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def check_architecture(config: Any, key: str) -> None:
    """Raise UserError if forest attention does not cover the model's attention."""
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if types != {"full_attention"}:
        raise UserError(f"{key}: {config.model_type} has {', '.join(sorted(types))} layers; only full attention is covered.")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise UserError(f"{key}: {config.model_type} soft-caps attention scores, which forest attention does not cover.")


def check_same_vocabulary(student: Chat, teacher: Chat, student_config: Any, teacher_config: Any) -> str | None:
    """Raise UserError unless teacher and student have the same tokens, special ids and assistant header.

    Embedding tables may be padded to different sizes (Qwen2.5 3B has 151,936 rows, 7B 152,064): then the common words
    count, and a notice that says so is returned.
    """
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours != theirs:
        different = sorted(set(ours.items()) ^ set(theirs.items()))[:1]
        raise UserError(
            f"student and teacher have different vocabularies ({len(ours)} and {len(theirs)} tokens, e.g. {different[0]}): "
            "the teacher must score the student's own tokens. Take a teacher of the same model family "
            "(TEACHER_MODEL_PATH, actor_rollout_ref.ref.model.path)."
        )
    if student.assistant_header() != teacher.assistant_header():
        raise UserError(
            f"student and teacher open an assistant turn differently ({student.assistant_header()!r} and "
            f"{teacher.assistant_header()!r}): the first token would be scored in another dialect. Make "
            "data.apply_chat_template_kwargs fit both, or give the teacher the student's chat template."
        )
    if student_config.vocab_size != teacher_config.vocab_size:
        common = min(student_config.vocab_size, teacher_config.vocab_size)
        return (
            f"student and teacher pad their embeddings to {student_config.vocab_size} and {teacher_config.vocab_size} rows; "
            f"distributions are compared over the common {common}"
        )
    return None


def build_lm(path: str, *, attention: str, dtype: torch.dtype, trust_remote_code: bool = False, with_weights: bool = True) -> nn.Module:
    """Return the causal language model of a folder or hub name in `dtype`, in eval mode, on the CPU.

    `with_weights=False` gives its shapes and buffers only; the memory of its weights is allocated but never touched.
    """
    import transformers
    from transformers.initialization import no_init_weights

    import trainer.attention  # noqa: F401  registers "forest"

    transformers.logging.disable_progress_bar()
    common = {"dtype": dtype, "attn_implementation": attention, "trust_remote_code": trust_remote_code}
    if with_weights:
        return transformers.AutoModelForCausalLM.from_pretrained(path, **common).eval()
    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with no_init_weights():
        lm = transformers.AutoModelForCausalLM.from_config(config, **common).eval()
    lm.tie_weights()  # initialisation would have done it
    return lm


def generation_eos(path: str) -> int | list[int] | None:
    """Return the end-of-sequence ids a model folder's generation_config.json names, if it is local and has them."""
    file = Path(path) / "generation_config.json"
    if file.is_file():
        return json.loads(file.read_text()).get("eos_token_id")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(path, "generation_config.json") if not Path(path).exists() else None
    return json.loads(Path(cached).read_text()).get("eos_token_id") if isinstance(cached, str) else None


class ForestLM(nn.Module):
    """A causal language model that reads a forest and hands the hidden states of chosen rows, with its head, on.

    What to do with them (`then`) is part of the forward call, so that the head's weights are whole there when the
    model is sharded.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, forest: Forest, plan: "AttentionPlan", then: Callable[[Tensor, Head], Any]) -> Any:
        """Run the forest, return `then(hidden [R, H], head)` for the forest's R rows."""
        device = plan.device
        hidden = self.lm.base_model(
            input_ids=torch.from_numpy(forest.token_ids).to(device)[None],
            position_ids=torch.from_numpy(forest.positions).to(device)[None],
            use_cache=False,
            plan=plan,
        ).last_hidden_state[0]
        return then(hidden[torch.from_numpy(forest.rows).to(device)], Head.of(self.lm))
