"""How much memory a run will need, from its configuration alone: the peak of a rank in every phase of a step, in parts.

Weights, gradients and optimizer state follow from the number of parameters and ranks; what a pass holds is found by
running it without data (`trainer.footprint`); the head's buffers are those of `trainer.fused`. From the same numbers
`auto` is filled in: the tokens of a micro-batch and of a chunk of logits. A plan is of a run whose micro-batches fill
their budget, with prompts and responses of full length. docs/performance.md says how well plans and runs agree.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from trainer import footprint, models, objectives, peers
from trainer.checkpoint import has_moving_teacher
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.footprint import Architecture, Attended
from trainer.fused import MIN_CHUNK, default_chunk
from trainer.machine import memory_available, resident
from trainer.workers.setup import compute_dtype, engine_count, max_model_len

GIB = 1 << 30
AUTO_SHARE = 0.8  # of what is there that `auto` fills: a prediction may be a fifth too low
NOTICE_SHARE = 0.9  # of what is there from which on the user is told that it is close
CHUNK_SHARE = 1 / 16  # of a GPU's memory for the logits of a chunk
STEP = 64  # what budgets found are multiples of, and columns by which the hf engine's cache grows

# Measured on a CPU: what a rank's process takes on beyond its imports until it has trained a model of no size, and
# what the C library's heap is larger than the most of small tensors that lived in it.
STARTED = 48 << 20
HEAP_SHARE = 1 / 4
# Assumed, not measured: what of a GPU PyTorch's allocator does not count.
CONTEXT = GIB * 3 // 4  # CUDA's context and the libraries' workspaces
COLLECTIVES = GIB * 3 // 4  # nccl's buffers, where there are several ranks
ASLEEP = GIB * 3 // 2  # what vLLM keeps while it sleeps


@dataclass(frozen=True)
class Phase:
    """A phase of a rank: its parts in bytes at its worst moment."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """The predicted memory of one rank; of the first, which also hands out the weights.

    `tokens` are those of a micro-batch, `chunk` the response tokens whose logits exist at once. `there` is what the
    rank may take, None where unknown, `engine` what the engine holds beside its process, in bytes.
    """

    device: str
    ranks: int
    tokens: int
    chunk: int
    phases: tuple[Phase, ...]
    engine: int
    there: int | None

    @property
    def worst(self) -> Phase:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def expected(self) -> int:
        """What `memory/peak_gib` of a run should come to: on a GPU only what the rank's own allocator gives out."""
        foreign = () if self.device == "cpu" else ("process", "engine")
        return max(sum(size for part, size in phase.parts.items() if part not in foreign) for phase in self.phases)

    def in_process(self) -> "MemoryPlan":
        """Return the plan of a run without Ray: rank and engine in this process, as large as it is now."""
        if self.device != "cpu":
            return self
        now = {"process": resident() + STARTED, "engine": self.engine}
        return replace(self, phases=tuple(Phase(phase.name, {**phase.parts, **now}) for phase in self.phases))


def plan(config: Config, **given: Any) -> MemoryPlan:
    """Return the memory a rank of a run needs; where the configuration says `auto`, with what that comes to.

    Takes what `Planner` takes. Raises UserError if a model cannot be found.
    """
    return Planner(config, **given).resolve(config)[1]


def process_bytes() -> int:
    """Return what a rank's process will hold on a CPU before there is a model in it, judged by this process.

    Both import the same; so it is to be called while this process has not done much else.
    """
    import trainer.workers.ray_workers  # noqa: F401  what a rank imports

    return resident() + STARTED


def free_bytes(device: str) -> int:
    """Return the free memory of the fullest GPU, or of this machine or container. Raises UserError if CUDA does not say."""
    if device == "cpu":
        return memory_available()
    # in a process of its own: asking takes up memory of the GPU for as long as the process lives
    code = "import torch; print(min(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise UserError(f"trainer.device=cuda: the GPU does not answer ({asked.stderr.strip().splitlines()[-1]}).")
    return int(asked.stdout)


class Planner:
    """Plans the memory of runs with the same models on the same machine.

    Args:
        device: "cpu" or "cuda".
        own, other: the configurations of the model and of `ref.model`; None: looked up by their paths.
        prompt: tokens of the longest prompt; None: `data.max_prompt_length`.
        context: tokens of the longest teacher prompt; None: `max_reprompt_len`.
        process: bytes of a rank's process on a CPU before it has a model.
        free: bytes that are free on each GPU, or on this node; None: unknown, then nothing is refused and `auto` takes
            the most that can be of use.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: str,
        own: Any = None,
        other: Any = None,
        prompt: int | None = None,
        context: int | None = None,
        process: int = 0,
        free: int | None = None,
    ) -> None:
        model, ref = config.actor_rollout_ref.model, config.actor_rollout_ref.ref.model
        self.device, self.gpu, self.free = device, device == "cuda", free
        self.dtype = compute_dtype(config, torch.device(device))
        self.second = objectives.build(config).second_model
        self.moving = has_moving_teacher(config)
        trust = model.trust_remote_code
        own = own or models.resolve(model.path, "actor_rollout_ref.model.path", trust_remote_code=trust)
        if other is None and ref.path:
            other = models.resolve(ref.path, "actor_rollout_ref.ref.model.path", trust_remote_code=trust)
        self.own, self.other = Architecture(own, trust), Architecture(other or own, trust)
        self.sizes, self.other_sizes = footprint.sizes(self.own), footprint.sizes(self.other)
        self.process = process
        self.prompt = config.data.max_prompt_length if prompt is None else prompt
        self.context = config.actor_rollout_ref.actor.self_distillation.max_reprompt_len if context is None else context
        if self.second == "reference":
            self.context = self.prompt

    def resolve(self, config: Config) -> tuple[Config, MemoryPlan]:
        """Return the configuration with numbers for `auto`, and its plan."""
        actor = config.actor_rollout_ref.actor
        tokens, chunk = actor.ppo_max_token_len_per_gpu, actor.head_chunk
        if chunk == "auto":
            chunk = self._chunk(config)
        if tokens == "auto":
            tokens = self._budget(config, chunk)
        if actor.head_chunk == "auto":
            chunk = max(MIN_CHUNK, min(chunk, self._rows(config, tokens)))
        config = _with_actor(config, ppo_max_token_len_per_gpu=tokens, head_chunk=chunk)
        return config, self.plan(config)

    def check(self, config: Config, found: MemoryPlan) -> list[str]:
        """Raise UserError if the plan exceeds what is there, with its parts and what to turn; else return notices."""
        if found.there is None:
            return []
        if found.worst.total <= NOTICE_SHARE * found.there:
            most = found.worst.total + found.engine - self._engine_weights
            if self.gpu or most <= found.there:
                return []
            rollout = config.actor_rollout_ref.rollout
            return [
                f"an engine comes to {gib(found.engine)} GiB if it decodes its most sequences to their full length at once: too much "
                f"beside the ranks. Should that happen, lower actor_rollout_ref.rollout.max_num_seqs={rollout.max_num_seqs}"
            ]
        need = found.worst.total
        remedies = "\n".join(f"  {gib(peak)} GiB with {key}" for key, peak in self._remedies(config)) or "  less with a smaller model"
        said = f"a rank is predicted to need {gib(need)} GiB ({found.worst.name}), and {gib(found.there)} GiB are there"
        if need <= found.there:
            return [f"{said}. It would be\n{remedies}"]
        said = f"{said}: {gib(need - found.there)} GiB too few.\n{as_text(table(found))}\nIt would be\n{remedies}"
        if config.trainer.check_memory:
            raise UserError(f"{said}\ntrainer.check_memory=False starts the run all the same.")
        return [said]

    def plan(self, config: Config) -> MemoryPlan:
        """Return the plan of a configuration without `auto`."""
        actor = config.actor_rollout_ref.actor
        phases = tuple(
            Phase(name, {part: size for part, size in parts.items() if size}) for name, parts in self._phases(config).items() if parts
        )
        engine = self._engine(config)
        there = self.free
        if there is not None and not self.gpu:  # beside the engines: their weights; their caches are as long as responses turn out
            engines = engine_count(config, "cpu") * (self.process + self._engine_weights)
            there = max(0, there - engines) // config.trainer.n_gpus_per_node
        return MemoryPlan(self.device, config.trainer.world_size, actor.ppo_max_token_len_per_gpu, actor.head_chunk, phases, engine, there)

    # what `auto` comes to, and what else there is to turn

    def _chunk(self, config: Config) -> int:
        words = max(self.sizes.words, self.other_sizes.words)
        if not self.gpu:
            return default_chunk(words)
        chunk = MIN_CHUNK
        while self._logits(config, 2 * chunk) <= CHUNK_SHARE * (self.free or 16 * GIB):
            chunk *= 2
        return chunk

    def _budget(self, config: Config, chunk: int) -> int:
        """Return the largest token budget that fits, at least the longest sequence, at most what a mini-batch can fill."""

        def room(tokens: int) -> float:
            found = self.plan(_with_actor(config, ppo_max_token_len_per_gpu=tokens, head_chunk=chunk))
            return 1 if found.there is None else AUTO_SHARE * found.there - found.worst.total

        least = config.longest_sequence
        most = max(least, *self._most_tokens(config))
        if room(most) >= 0:
            return most
        if room(least) < 0:
            return least  # `check` says so
        low, high = least, most
        while high - low > max(STEP, low // 16):
            middle = (low + high) // 2
            low, high = (middle, high) if room(middle) >= 0 else (low, middle)
        return max(least, low // STEP * STEP)

    def _remedies(self, config: Config) -> list[tuple[str, int]]:
        """Return overrides that lower the peak, and the peak they lead to: alone, the lowest first, then the actor's together."""
        arr, data = config.actor_rollout_ref, config.data
        changes: dict[str, Any] = {
            "actor_rollout_ref.model.enable_gradient_checkpointing": True,
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": config.longest_sequence,
            "actor_rollout_ref.actor.head_chunk": max(MIN_CHUNK, arr.actor.head_chunk // 8),
            "actor_rollout_ref.actor.fsdp_config.reshard_after_forward": True,
            "data.max_response_length": data.max_response_length // 2,
        }
        if self.gpu:
            changes |= {
                "actor_rollout_ref.actor.fsdp_config.optimizer_offload": True,
                "actor_rollout_ref.actor.fsdp_config.param_offload": True,
                "actor_rollout_ref.ref.fsdp_config.param_offload": True,
                "trainer.n_gpus_per_node": 2 * config.trainer.n_gpus_per_node,
            }
            if arr.rollout.name == "vllm":
                changes["actor_rollout_ref.rollout.gpu_memory_utilization"] = round(arr.rollout.gpu_memory_utilization / 2, 2)
        now, alone, together, all_changed = self.plan(config).worst.total, [], [], config
        for key, value in changes.items():
            changed = _changed(config, key.split("."), value)
            if changed is None:
                continue
            if (peak := self.plan(changed).worst.total) < now:
                alone.append((f"{key}={value}", peak))
            if key.startswith("actor_rollout_ref."):
                together.append(f"{key}={value}")
                all_changed = _changed(all_changed, key.split("."), value)
        if len(together) > 1 and (peak := self.plan(all_changed).worst.total) < now:
            return [*sorted(alone, key=lambda remedy: remedy[1]), (" ".join(together), peak)]
        return sorted(alone, key=lambda remedy: remedy[1])

    # what a micro-batch is

    def _most_tokens(self, config: Config) -> tuple[int, int]:
        """Return the tokens of a rank's share of an optimizer step, the student's and the second model's.

        Members of a group share the prompt, and the context unless they are shown in it themselves.
        """
        n, answer = config.actor_rollout_ref.rollout.n, config.data.max_response_length - 1
        rollouts = self._rollouts(config)
        prompts = -(-rollouts // n)
        contexts = 1 + sum(peers.wanted(config.actor_rollout_ref.actor.self_distillation)) if self.second == "teacher" else 1
        second = min(prompts * contexts, rollouts) * self.context + rollouts * answer if self.second else 0
        return prompts * self.prompt + rollouts * answer, second

    def _rollouts(self, config: Config) -> int:
        """Return the most rollouts of an optimizer step on a rank."""
        return -(-config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n // config.trainer.world_size)

    def _rows(self, config: Config, tokens: int) -> int:
        """Return the most response tokens of a micro-batch."""
        return min(tokens, self._rollouts(config) * config.data.max_response_length)

    def _sides(self, config: Config) -> tuple[tuple[Attended, int], tuple[Attended, int]]:
        """Return what attention copies in a full micro-batch, and the bytes of its masks: student's side, second model's."""
        budget = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
        student, second = (min(budget, most) for most in self._most_tokens(config))
        return self._attended(config, student, self.prompt), self._attended(config, second, self.context)

    def _attended(self, config: Config, tokens: int, prompt: int) -> tuple[Attended, int]:
        """Return the same where full responses to shared prompts of that length fill `tokens`."""
        if self.gpu:  # one kernel over all tokens, without a mask
            return Attended(tokens, tokens, tokens), 0
        answer, n = config.data.max_response_length - 1, config.actor_rollout_ref.rollout.n
        whole, rest = divmod(tokens, prompt + n * answer)
        answers = max(1, whole * n + max(0, rest - prompt) // max(1, answer))
        stems = -(-answers // n)
        scale = tokens / (stems * prompt + answers * answer)
        keys, pairs = stems * prompt + answers * (prompt + answer), answers * answer * (prompt + answer)
        keys, pairs = round(scale * keys), round(scale * pairs)
        return Attended(tokens, tokens, keys, pairs if self.dtype != torch.float32 else 0), 4 * pairs

    # the formulas

    def _phases(self, config: Config) -> dict[str, dict[str, int]]:
        """Return the parts of each phase, in bytes."""
        arr, own, other, second = config.actor_rollout_ref, self.sizes, self.other_sizes, self.second or ""
        ranks, wide, tokens = config.trainer.world_size, self.dtype.itemsize, arr.actor.ppo_max_token_len_per_gpu
        weights_away, moments_away, second_away = self._offloads(config)
        several = max(self._most_tokens(config)) > tokens

        # what a rank holds of the models: shards at rest, and whole what FSDP gathers for a pass: the root from its
        # first use on (the second model's to the end of the update), layers in passing
        shards = {
            "master weights": _shard(own.parameters, 4, ranks),
            "Adam moments": _shard(own.parameters, 8, ranks),
            second: _shard(other.parameters, 4 if self.moving else wide, ranks) if second else 0,
        }
        gradients = _shard(own.parameters, 4, ranks)
        resharded, passing = arr.actor.fsdp_config.reshard_after_forward, 1 if ranks == 1 else 3
        whole = wide * (own.root if resharded else own.parameters)
        whole_second = wide * (other.root if resharded else other.parameters) if second else 0

        process = CONTEXT + (ranks > 1) * COLLECTIVES if self.gpu else self.process
        base = {"process": process, "engine": self._engine_asleep(config)}
        training = base | shards | {"Adam moments": 0 if moments_away else shards["Adam moments"], "gradients": gradients if several else 0}
        phases = {"start": self._start(config), "rollout": base | shards | {"engine": self._engine_awake(config)}}
        for part, away in (("master weights", weights_away), ("Adam moments", moments_away), (second, second_away)):
            phases["rollout"] |= {part: 0} if away else {}
        (student, mask), (context, second_mask) = self._sides(config)
        if second:
            scored = footprint.of_pass(self.other, self.dtype, context, grad=False)
            phases[second] = training | {
                "whole weights": whole_second + wide * passing * other.layer,
                "activations": scored.saved + scored.forward + second_mask,
            }

        checkpointing = arr.model.enable_gradient_checkpointing
        body = footprint.of_pass(self.own, self.dtype, student, grad=True, checkpointing=checkpointing)
        activations, head, rows = body.saved + mask, 4 * own.words * own.width, self._rows(config, tokens)
        cast = head // 2 if wide < 4 else 0  # the head's gradient, or a chunk's part of it, in the compute dtype
        phases["head"] = training | {
            "whole weights": whole + whole_second,
            "activations": activations,
            "hidden states": wide * rows * (2 * own.width + (other.width if second else 0)),
            "logits": self._logits(config, arr.actor.head_chunk),
            "head gradient": head + cast,
        }
        layer_gradients = own.layer * (wide + 12)  # as computed, and in float32: before, while and after it is reduced
        root_gradients = max(own.root * (wide + 4), own.root * (4 if ranks > 1 else 8) + _shard(own.root, 4, ranks))
        moments = (
            # the head's gradient is scaled, and cast
            {"activations": activations, "head gradient": 2 * head + cast, "whole weights": whole},
            # layer by layer, while the head's gradient waits for that of the embeddings
            {
                "activations": activations + body.backward,
                "head gradient": head - cast,
                "whole weights": whole + wide * own.layer * (passing + 1),
                "gradients": training["gradients"] + layer_gradients,
            },
            # head and embeddings are reduced, after everything else
            {"gradients": max(training["gradients"], gradients - _shard(own.root, 4, ranks)) + root_gradients, "whole weights": whole},
        )
        worst = max(moments, key=lambda parts: sum((training | parts).values()))
        phases["backward"] = training | worst | {"whole weights": worst["whole weights"] + whole_second}
        phases["optimizer"] = training | {
            "Adam moments": shards["Adam moments"],
            "gradients": gradients,
            **({second: 0, "whole weights": 0} if moments_away and second_away else {"whole weights": whole_second}),
        }
        # to the engine go, from the first rank, all weights (in its own and in shared memory); on a GPU one at a time
        phases["sync"] = training | {
            "gradients": 0,
            "engine": base["engine"] + (self._engine_weights if base["engine"] == ASLEEP else 0),  # vLLM wakes in two stages
            "copies": head if self.gpu else 2 * wide * own.parameters,
        }
        if not self.gpu:  # the C library's heap stays as large as a pass's small tensors made it, and a little larger
            held = max(body.small, scored.small if second else 0)
            for name, parts in phases.items():
                parts["heap"] = round((1 + HEAP_SHARE) * held) - min(held, parts.get("activations", 0)) if name != "start" else 0
        return phases

    def _start(self, config: Config) -> dict[str, int]:
        """Return what is there while the last model is built, in float32 and whole, from its file, before it is sharded."""
        ranks = config.trainer.world_size
        if self.gpu:  # that happens in the host's memory
            return {}
        last = self.other_sizes.parameters if self.second else self.sizes.parameters
        file = last * (getattr((self.other if self.second else self.own).config, "dtype", None) or torch.float32).itemsize
        return {
            "process": self.process,
            "master weights": _shard(self.sizes.parameters, 4, ranks) if self.second else 0,
            "copies": 4 * last * (2 if ranks > 1 else 1) + file,
        }

    def _offloads(self, config: Config) -> tuple[bool, bool, bool]:
        """Return what of a GPU's state lies in host memory while it is not used: weights, moments, second model."""
        arr = config.actor_rollout_ref
        fsdp = arr.actor.fsdp_config
        return self.gpu and fsdp.param_offload, self.gpu and fsdp.optimizer_offload, self.gpu and arr.ref.fsdp_config.param_offload

    def _logits(self, config: Config, chunk: int) -> int:
        """Return the buffers of a chunk of logits: the student's, the second model's, and what is computed with them."""
        words = max(self.sizes.words, self.other_sizes.words if self.second else 0)
        buffers = 4 * (2 if self.second else 1)
        if self.dtype.itemsize < 4:
            buffers += self.dtype.itemsize
        if self.gpu:  # scored in one go, on a CPU in blocks that fit into its caches
            distill = config.actor_rollout_ref.actor.self_distillation
            in_full = self.second == "teacher" and distill.full_logit_distillation and distill.distillation_topk is None
            buffers += 4 * (5 if in_full else 2 if self.second == "teacher" else 3)
        return chunk * words * buffers

    # the engine

    def _engine_awake(self, config: Config) -> int:
        """Return what a rank's GPU holds of an engine that samples."""
        rollout = config.actor_rollout_ref.rollout
        if not self.gpu or rollout.n_gpus:
            return 0
        if rollout.name == "vllm":
            return round(rollout.gpu_memory_utilization * (self.free or 0))
        return CONTEXT + self._engine(config)

    def _engine_asleep(self, config: Config) -> int:
        """Return what a rank's GPU holds of an engine while the rank trains."""
        rollout = config.actor_rollout_ref.rollout
        if not self.gpu or rollout.n_gpus:
            return 0
        return ASLEEP if rollout.name == "vllm" else CONTEXT + self._engine_weights

    @property
    def _engine_weights(self) -> int:
        return self.dtype.itemsize * self.sizes.parameters

    def _engine(self, config: Config) -> int:
        """Return what an engine holds that decodes the most sequences it may to their full length: weights, cache, what is
        computed of a token's logits."""
        rollout, data, text = config.actor_rollout_ref.rollout, config.data, self.own.config.get_text_config()
        dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        column = 2 * text.num_hidden_layers * text.num_key_value_heads * dim * self.dtype.itemsize
        rows = rollout.max_num_seqs if data.val_files else min(rollout.max_num_seqs, data.train_batch_size * rollout.n)
        if rollout.name == "vllm":
            cache = rows * column * (max_model_len(config) + STEP)
            return self._engine_weights + (cache if self.free is None else min(cache, round(self.free * rollout.gpu_memory_utilization)))
        own = rows * -(-data.max_response_length // STEP) * STEP
        prompts = -(-rows // min(rollout.n, rollout.val_kwargs.n)) * self.prompt
        nucleus = min(rollout.top_p, rollout.val_kwargs.top_p if data.val_files else 1) < 1
        return self._engine_weights + 2 * column * (own + prompts) + 4 * rows * self.sizes.words * (12 if nucleus else 5)


def table(found: MemoryPlan) -> Table:
    """Return the plan as a table: parts by phases, in GiB."""
    there = "" if found.there is None else f"; {gib(found.there)} GiB are there"
    sizes = f"micro-batches of {found.tokens} tokens, logits of {found.chunk} at once"
    out = Table("GiB", title="memory per rank, predicted", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    out.columns[0].footer, out.columns[0].no_wrap = "in all", True
    out.caption = f"{found.ranks} rank(s) on {found.device}; {sizes}{there}"
    for phase in found.phases:
        out.add_column(phase.name, footer=gib(phase.total), justify="right", no_wrap=True)
    for part in dict.fromkeys(part for phase in found.phases for part, size in phase.parts.items() if size):
        out.add_row(part, *[gib(phase.parts[part]) if phase.parts.get(part) else "" for phase in found.phases])
    return out


def as_text(shown: Table) -> str:
    """Return a table as lines of text."""
    console = Console(file=StringIO(), width=100)
    console.print(shown)
    return console.file.getvalue().rstrip()


def gib(size: int) -> str:
    """Return bytes as GiB with two decimals."""
    return f"{size / GIB:.2f}"


def _shard(parameters: int, size: int, ranks: int) -> int:
    return -(-parameters // ranks) * size


def _with_actor(config: Config, **changes: Any) -> Config:
    arr = config.actor_rollout_ref
    return replace(config, actor_rollout_ref=replace(arr, actor=replace(arr.actor, **changes)))


def _changed(config: Any, path: list[str], value: Any) -> Any:
    """Return the configuration with a key changed; None if it has no such key or that value already."""
    name, *rest = path
    if not hasattr(config, name):
        return None
    now = getattr(config, name)
    inner = _changed(now, rest, value) if rest else None if now == value else value
    return None if inner is None else replace(config, **{name: inner})
