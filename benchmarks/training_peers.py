"""The models of other packages that mixlab is measured beside, and how they make an update."""

import importlib
import importlib.util
import itertools
import sys
import time
import types
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_workloads import Contender, Shape, Workload

from mixlab.data.synthetic import RandomText
from mixlab.jobs import bench
from mixlab.jobs.kernel_times import kernel_times

CLASSES = {
    "fla": ("fla.models", "GatedDeltaNetConfig", "GatedDeltaNetForCausalLM"),
    "llama": ("transformers", "LlamaConfig", "LlamaForCausalLM"),
    "qwen3_moe": ("transformers", "Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "deepseek_v3": ("transformers", "DeepseekV3Config", "DeepseekV3ForCausalLM"),
}


def peer_settings(family: str, s: Shape) -> dict[str, Any]:
    """The arguments of a peer's own config class for a shape."""
    common = {
        "vocab_size": s.vocab,
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "max_position_embeddings": max(2048, s.length),
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    if family == "fla":
        at = s.attention_at or (range(s.layers) if not s.linear_heads else ())
        return common | {
            "num_heads": s.linear_heads or s.heads,
            "head_dim": s.linear_head_dim or s.head_dim,
            "expand_v": 1.0,
            "intermediate_size": s.d_ff,
            "attn": {
                "layers": list(at), "num_heads": s.heads, "num_kv_heads": s.heads,
                "window_size": 2048, "qkv_bias": False, "rope_theta": 10000.0,
            },
        }  # fmt: skip
    common |= {"num_attention_heads": s.heads, "attn_implementation": "sdpa"}
    if family == "llama":
        return common | {"intermediate_size": s.d_ff}
    if family == "qwen3_moe":
        return common | {
            "num_key_value_heads": s.heads,
            "head_dim": s.head_dim,
            "num_experts": s.experts,
            "num_experts_per_tok": s.active_experts,
            "moe_intermediate_size": s.d_ff,
            "norm_topk_prob": True,
        }
    return common | {
        "num_key_value_heads": s.heads,
        "q_lora_rank": s.rank,
        "kv_lora_rank": s.rank,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": s.head_dim,
        "v_head_dim": s.head_dim,
        "intermediate_size": s.d_ff,
        "first_k_dense_replace": s.layers,
        "attention_bias": True,
    }


class Peer:
    """Another package's model with fused AdamW, clipping and no host synchronisation.

    Its batches lie on the device beforehand; ours are drawn and transferred while it is timed.
    """

    def __init__(self, contender: Contender, workload: Workload, device: torch.device) -> None:
        self._contender, self._device = contender, device
        shape = workload.shape
        make_config, make_model = classes(contender.family)
        config = make_config(**peer_settings(contender.family, shape))
        with device:
            model = make_model(config)
        model = model.to(device=device, dtype=getattr(torch, contender.weights)).train()
        self._model = model
        self._run = torch.compile(model) if contender.compile else model
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        text = RandomText(shape.vocab, shape.length, seed=1)
        self._batches = [text.batch(i * shape.rows, shape.rows).tokens.to(device) for i in range(4)]
        self._n = 0

    def _once(self) -> None:
        tokens = self._batches[self._n % len(self._batches)]
        self._n += 1
        is_mixed = self._contender.weights == "float32" and self._device.type == "cuda"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_mixed):
            # It shifts the labels itself, which costs it one target of every sequence.
            loss = self._run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def warm_up(self) -> float:
        start = time.perf_counter()
        self._once()
        _wait(self._device)
        first_s = time.perf_counter() - start
        for _ in range(bench.WARM_UP):
            self._once()
        _wait(self._device)
        return first_s

    def free(self, n_updates: int) -> list[float]:
        if self._device.type != "cuda":
            times = []
            for _ in range(n_updates):
                start = time.perf_counter()
                self._once()
                times.append(time.perf_counter() - start)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(n_updates + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self._once()
            mark.record()
        _wait(self._device)
        return [a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(marks)]

    def facts(self) -> dict[str, Any]:
        kernels = kernel_times(self._once, self._device)
        return {
            "precision": "bf16" if self._contender.weights == "bfloat16" else "fp32 + autocast",
            "compile": self._contender.compile,
            "kernels": [kernel._asdict() for kernel in kernels],
            "n_params": sum(p.numel() for p in self._parameters),
        }


def classes(family: str) -> tuple[Any, Any]:
    """A peer's config class and model class.

    Raises:
        ImportError: the package is not installed.
    """
    module, config_class, model_class = CLASSES[family]
    if family == "fla":
        _lend_flash_attention()
    package = importlib.import_module(module)
    return getattr(package, config_class), getattr(package, model_class)


def _lend_flash_attention() -> None:
    """Let FLA's attention layers run without the package flash_attn, by PyTorch's own kernel."""
    if importlib.util.find_spec("flash_attn") is not None:
        return

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: Any) -> Any:
        # All (B, T, heads, head_dim); the window is at least as long as the sequence.
        del window_size
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, is_causal=causal).transpose(1, 2)

    def refused(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("packed sequences need the package flash_attn")

    module = types.ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)
    module.flash_attn_func, module.flash_attn_varlen_func = flash_attn_func, refused
    sys.modules["flash_attn"] = module


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
