"""The engine for real work: vLLM, in the process that holds this object (GPU workers of tensor parallelism beside it).

Token ids go in and come out; vLLM never sees a tokenizer. The samples of a prompt are requests of their own, each with its
own seed, and share the prompt's blocks through the prefix cache. What is particular to vLLM's CPU build (0.32): seeds do not go
together with chunked prefill; linear weights are repacked, so they are read back by what the layer computes; of tied
embeddings the head has a copy of its own, so it is sent as well; sleep does nothing there.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from trainer.engines.base import CORNER, HEARTBEAT, Engine, Response, Sampling, Settings, corner_checksum, spread
from trainer.errors import UserError

GIB = 2**30
BLOCK = 32  # tokens of a block of the KV cache on CPU; its default of 128 would share no prefix of a short prompt


class VLLMEngine(Engine):
    """Samples with vLLM's LLMEngine, driven step by step."""

    def __init__(
        self,
        path: str,
        *,
        stop_ids: Sequence[int],
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        settings: Settings = Settings(),  # noqa: B008  frozen
    ) -> None:
        self.stop_ids, self.dtype, self.settings, self.on_cpu = [int(i) for i in stop_ids], dtype, settings, device == "cpu"
        self.asleep = False
        self.calls = 0
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
        self.tied = bool(model_config.get_text_config().tie_word_embeddings)
        self.length = settings.max_model_len or model_config.get_text_config().max_position_embeddings
        options: dict[str, Any] = {
            "model": path,
            "skip_tokenizer_init": True,
            "trust_remote_code": settings.trust_remote_code,
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": self.length,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": max(settings.max_num_batched_tokens, self.length if self.on_cpu else 0),
            "tensor_parallel_size": settings.tensor_parallel,
            "gpu_memory_utilization": settings.memory_share,
            "enforce_eager": settings.eager or self.on_cpu,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",  # after temperature, top-k and top-p: those of what was sampled from
            "disable_log_stats": True,
            "seed": 0,
        }
        if settings.tensor_parallel > 1:
            options["distributed_executor_backend"] = "mp"  # found in a Ray actor it would place its workers by Ray, on GPUs taken here
        if self.on_cpu:
            options |= {"enable_chunked_prefill": False, "block_size": BLOCK}
            options["kv_cache_memory_bytes"] = self._cpu_cache_bytes(model_config.get_text_config())
        else:
            options["enable_sleep_mode"] = settings.sleeps
        self.engine = self._start(options)

    def _start(self, options: dict[str, Any]) -> Any:
        # read by vLLM when it is imported: its engine runs in this process, where a death is seen as this process's
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        if self.on_cpu:
            os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # unset, vLLM goes down to one
        from vllm.config import WeightTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if self.settings.transfer:
            options["weight_transfer_config"] = WeightTransferConfig(backend=self.settings.transfer)
        set_num_threads = torch.set_num_threads
        try:
            return LLMEngine.from_engine_args(EngineArgs(**options))
        except ValueError as error:
            needed = re.search(r"\(([\d.]+) GiB KV\s+cache is needed", str(error))
            remedy = (
                f"one sequence needs {needed[1]} GiB of KV cache: raise actor_rollout_ref.rollout.gpu_memory_utilization="
                f"{self.settings.memory_share:g}, or lower actor_rollout_ref.rollout.max_model_len={self.length}. "
                if needed
                else ""
            )
            raise UserError(f"vLLM does not start with actor_rollout_ref.rollout as it is. {remedy}vLLM says: {error}") from error
        finally:
            torch.set_num_threads = set_num_threads  # vLLM's CPU worker puts a no-op in its place

    def _cpu_cache_bytes(self, text_config: Any) -> int:
        """Return VLLM_CPU_KVCACHE_SPACE, or room for `max_num_seqs` full sequences within the share of free memory."""
        head_dim = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
        per_token = 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head_dim * self.dtype.itemsize
        one = (-(-self.length // BLOCK) + 1) * BLOCK * per_token  # vLLM keeps one block for itself
        asked, free = os.environ.get("VLLM_CPU_KVCACHE_SPACE"), int(psutil.virtual_memory().available * self.settings.memory_share)
        size = int(float(asked) * GIB) if asked else min(self.settings.max_num_seqs * one, free)
        if size < one:
            where = "VLLM_CPU_KVCACHE_SPACE" if asked else "actor_rollout_ref.rollout.gpu_memory_utilization (a share of the free memory)"
            raise UserError(
                f"the KV cache ({size / GIB:.3g} GiB) does not hold one sequence of actor_rollout_ref.rollout.max_model_len={self.length} "
                f"tokens: that takes {one / GIB:.3g} GiB. Raise {where}, or lower max_model_len."
            )
        return size

    def generate(self, prompts: Sequence[np.ndarray], seeds: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[list[Response]]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        self.calls += 1
        names: dict[str, tuple[int, int]] = {}
        for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p])):
            ids = prompts[p].tolist()
            for s, seed in enumerate(seeds[p]):
                params = SamplingParams(
                    max_tokens=min(sampling.max_tokens, self.length - len(ids)),
                    temperature=0.0 if sampling.greedy else sampling.temperature,
                    top_p=1.0 if sampling.greedy else sampling.top_p,
                    top_k=-1 if sampling.greedy else sampling.top_k,
                    seed=seed,
                    logprobs=0,  # of the sampled token alone
                    flat_logprobs=True,
                    detokenize=False,
                    ignore_eos=True,  # what ends a turn is in stop_ids
                    stop_token_ids=self.stop_ids,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                name = f"{self.calls}-{p}-{s}"
                names[name] = p, s
                self.engine.add_request(name, {"prompt_token_ids": ids}, params)
        try:
            heard = time.monotonic()
            while names:
                finished = [self._response(names.pop(output.request_id), output) for output in self.engine.step() if output.finished]
                if finished or time.monotonic() - heard > HEARTBEAT:
                    heard = time.monotonic()
                    yield finished
        finally:
            if names:  # the caller does not want the rest
                self.engine.abort_request(list(names))

    @staticmethod
    def _response(name: tuple[int, int], output: Any) -> Response:
        (completion,) = output.outputs
        ids, logp = np.array(completion.token_ids, np.int32), np.array(completion.logprobs.logprobs, np.float32)
        if len(ids) != len(logp):
            raise RuntimeError(f"vLLM gave {len(logp)} log-probs for {len(ids)} tokens")
        return Response(*name, ids, logp, completion.finish_reason == "stop")

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        sent = list(weights.items())
        if self.tied and "lm_head.weight" not in weights:
            sent += [("lm_head.weight", tensor) for name, tensor in sent if name.endswith("embed_tokens.weight")]
        try:
            self.engine.collective_rpc(
                "reload_weights", kwargs={"weights_iterator": sent if self.settings.tensor_parallel > 1 else iter(sent)}
            )
        except (KeyError, ValueError) as error:
            raise ValueError(f"weights do not fit the sampler's model: {error}") from None
        self.engine.reset_prefix_cache()

    def transfer(self, method: str, *arguments: Any) -> None:
        """Pass on one call of vLLM's native weight transfer (`init_weight_transfer_engine`, `update_weights` ...) to its workers."""
        self.engine.collective_rpc(method, args=arguments)
        if method == "finish_weight_update":
            self.engine.reset_prefix_cache()

    def watched(self) -> list[str]:
        return list(self._read_back())

    def checksums(self) -> dict[str, int]:
        return {name: corner_checksum(tensor, self.dtype) for name, tensor in self._read_back().items()}

    def _read_back(self) -> dict[str, Tensor]:
        return self.engine.collective_rpc(_corners, args=(self.settings.tensor_parallel,))[0]

    def sleep(self) -> None:
        if self.settings.sleeps and not self.asleep:
            self.engine.sleep(level=2)
            self.asleep = True

    def wake(self, what: str) -> None:
        if self.asleep:
            self.engine.wake_up(tags=[what])
            self.asleep = what != "kv_cache"

    def close(self) -> None:
        self.engine.engine_core.shutdown()


@torch.no_grad()
def _corners(worker: Any, tensor_parallel: int) -> dict[str, Tensor]:
    """Return the first CORNER columns of a few weight matrices, and whole vectors, under their names in the checkpoint.

    Runs where the model is. A layer that multiplies is asked what it computes for the first unit vectors: those are its
    columns to the bit, in whatever way its weights are packed. Layers cut over GPUs are left out: no GPU holds a whole column.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    model: nn.Module = worker.get_model()
    fused = getattr(model, "packed_modules_mapping", {})
    readers: dict[str, Callable[[], Tensor]] = {}
    for name, module in model.named_modules():
        parent, _, leaf = name.rpartition(".")
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 1 and not hasattr(module, "quant_method"):
            readers[f"{name}.weight"] = partial(getattr, module, "weight")
        if tensor_parallel > 1:
            continue  # only what every GPU has whole
        if isinstance(module, ParallelLMHead):
            readers[f"{name}.weight"] = partial(_columns, module, module.embedding_dim, 0, module.org_vocab_size)
        elif isinstance(module, VocabParallelEmbedding):
            readers[f"{name}.weight"] = partial(_rows, module)
        elif hasattr(module, "input_size_per_partition"):
            sizes = getattr(module, "output_sizes", [module.output_size])
            ends = np.cumsum([0, *sizes])
            for i, part in enumerate(fused.get(leaf, [leaf])):
                readers[f"{parent}.{part}.weight"] = partial(_columns, module, module.input_size_per_partition, ends[i], ends[i + 1])
    return {name: readers[name]().detach().cpu() for name in spread(list(readers))}


def _columns(layer: Any, inputs: int, start: int, end: int) -> Tensor:
    """Return rows start to end of the first CORNER columns of a layer's weight, [end - start, CORNER]."""
    units = torch.eye(CORNER, inputs, dtype=layer.params_dtype, device=next(layer.parameters()).device)
    return layer.quant_method.apply(layer, units, None).T[start:end].contiguous()


def _rows(embedding: Any) -> Tensor:
    return embedding.weight[: embedding.org_vocab_size, :CORNER]
