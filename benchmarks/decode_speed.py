"""Writing text: our decoding against transformers' `generate` on the same weights.

    python benchmarks/decode_speed.py                                    # CPU, one thread, float32
    python benchmarks/decode_speed.py --device cuda --models gpu --contexts 1024 16384 --new 64

The weights are exported to the stock class in memory, so both compute the same function, and both
write greedily; the last column says whether they wrote the same text. `prefill` is the time until
the logits behind the prompts (theirs) or the first tokens (ours) are there, `decode` that of all
tokens after it. All contenders are timed in turn within a round; figures are medians over rounds,
ratios are medians of the ratios of each round, with the lowest and the highest of them.

On a CPU with one thread, times are processor time, which leaves out what a shared machine gives to
others. On a GPU they are wall time, the model in bfloat16, ours as CUDA graphs.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from mixlab.jobs.process import tune_process

tune_process()  # as the command line does, before torch is loaded; for both contenders
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, LogitsProcessor
from transformers.utils import import_utils

from mixlab.core.config import decode
from mixlab.export.moves import to_stock
from mixlab.export.verdict import verdict
from mixlab.infer.decoding.row_model import RowModel, row_model
from mixlab.infer.engine import Engine, Request
from mixlab.infer.sampler import SamplingConfig
from mixlab.nn.language_model import LanguageModel, LanguageModelConfig, build_model

GREEDY = SamplingConfig(temperature=0)
MAX_SEQ_LEN = 32_768

ROPE_QUARTER = {"rope_frac": 0.25, "qk_norm": "head", "output_gate": True}


def model_tree(d_model: int, layers: int, vocab: int, head_dim: int, blocks: dict, **rest) -> dict:
    return {
        "d_model": d_model, "n_layers": layers, "vocab_size": vocab, "max_seq_len": MAX_SEQ_LEN,
        "tie_embeddings": False, "blocks": blocks, **rest,
    }  # fmt: skip


def catalogue(d_model: int, n_layers: int, vocab: int, head_dim: int) -> dict[str, dict]:
    """Configs of the kinds that have a stock class, of one width and depth."""
    n_heads = d_model // head_dim
    d_ff = round(8 / 3 * d_model / 64) * 64
    mlp = {"kind": "mlp", "d_ff": d_ff}
    moe = {"kind": "moe", "n_experts": 8, "n_active_experts": 2, "d_expert": d_ff // 2}
    full = {"kind": "attention", "n_heads": n_heads, "head_dim": head_dim}
    grouped = full | {"n_kv_heads": max(1, n_heads // 2), "qk_norm": "head"}
    gated = grouped | ROPE_QUARTER
    delta = {"kind": "gated_deltanet", "n_heads": n_heads, "head_dim": head_dim}
    shared = moe | {"n_shared_experts": 1, "shared_expert_gate": True}

    def plain(mixer: dict, channel: dict) -> dict:
        block = {"sequence_mixer": mixer, "channel_mixer": channel}
        return model_tree(d_model, n_layers, vocab, head_dim, {"only": block})

    def hybrid(channel: dict) -> dict:
        blocks = {
            "linear": {"sequence_mixer": delta, "channel_mixer": channel},
            "full": {"sequence_mixer": gated, "channel_mixer": channel},
        }
        pattern = {"block": "full", "every": 4, "rest": "linear"}
        return model_tree(d_model, n_layers, vocab, head_dim, blocks, pattern=pattern)

    return {
        "Llama": plain(full, mlp),
        "Qwen3": plain(grouped, mlp),
        "Qwen3-MoE": plain(grouped, moe),
        "Qwen3.5 hybrid": hybrid(mlp),
        "Qwen3-Next hybrid, experts": hybrid(shared),
    }


SETS: dict[str, tuple[dict[str, int], list[str] | None]] = {
    "small": ({"d_model": 256, "n_layers": 4, "vocab": 4096, "head_dim": 64}, None),
    "medium": ({"d_model": 512, "n_layers": 8, "vocab": 16_384, "head_dim": 64}, None),
    "gpu": (
        {"d_model": 768, "n_layers": 12, "vocab": 49_152, "head_dim": 128},
        ["Llama", "Qwen3.5 hybrid"],
    ),
}


class Ids:
    """A vocabulary of which only the ids matter."""

    eos_id = -1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def decode(self, ids: Any) -> str:
        return ""


def build_pair(tree: dict, device: torch.device) -> tuple[LanguageModel, Any, str]:
    """Ours and the stock class with the same weights, and the name of the stock class."""
    cfg = decode(LanguageModelConfig, tree)
    ours = build_model(cfg, seed=0).eval()
    target = verdict(cfg).target
    assert target is not None, verdict(cfg).reasons
    fields = dict(target.stock_config(cfg))
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    stock = AutoModelForCausalLM.from_config(config).eval()
    weights = stacked(to_stock(ours.state_dict(), target.moves(cfg)))
    missing, unexpected = stock.load_state_dict(weights, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    settings = stock.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return ours.to(device), stock.to(device, dtype), target.architecture


def stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts in one tensor, as transformers holds them once they are loaded from a file."""
    found: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:
            experts.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            found[name] = tensor
    for name, parts in experts.items():
        order = [parts[i] for i in sorted(parts)]
        gate_up = [torch.cat([part["gate_proj"], part["up_proj"]]) for part in order]
        found[f"{name}.gate_up_proj"] = torch.stack(gate_up)
        found[f"{name}.down_proj"] = torch.stack([part["down_proj"] for part in order])
    return found


Writer = Callable[[int, Callable[[], None]], list[list[int]]]
"""Writes so many tokens after each prompt, and calls back once the prompts are read."""


def writer(rows: RowModel, vocab: int, prompts: list[list[int]]) -> Writer:
    """By an engine."""

    def run(n_new: int, has_read: Callable[[], None]) -> list[list[int]]:
        engine = Engine(rows.fresh() if not torch.cuda.is_available() else rows, Ids(vocab),
                        max_rows=len(prompts))  # fmt: skip
        texts = {engine.add(Request(p, n_new, GREEDY, ignore_eos=True)): [] for p in prompts}
        is_read = False
        while engine.n_live or engine.n_waiting:
            for event in engine.step():
                texts[event.key].append(event.token)
            if not is_read and not engine.n_waiting:
                has_read()
                is_read = True
        return list(texts.values())

    return run


class AtFirstLogits(LogitsProcessor):
    """Calls back when `generate` has the first logits, and leaves all of them as they are."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._call is not None:
            self._call()
            self._call = None
        return scores


def stock_writer(stock: Any, prompts: list[list[int]], device: torch.device) -> Writer:
    """By `generate`."""
    given = torch.tensor(prompts, device=device)
    mask = torch.ones_like(given)

    def run(n_new: int, has_read: Callable[[], None]) -> list[list[int]]:
        out = stock.generate(
            given, attention_mask=mask, max_new_tokens=n_new, min_new_tokens=n_new,
            do_sample=False, logits_processor=[AtFirstLogits(has_read)],
        )  # fmt: skip
        return out[:, given.shape[1] :].tolist()

    return run


class Times(NamedTuple):
    prefill_s: float
    decode_s: float


def measure(run: Writer, n_new: int, clock: Callable[[], float]) -> Times:
    read: list[float] = []
    start = clock()
    run(1 + n_new, lambda: read.append(clock()))
    end = clock()
    return Times(read[0] - start, end - read[0])


def clock_of(device: torch.device) -> Callable[[], float]:
    if device.type == "cuda":

        def now() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return now
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def compare(
    name: str, pair: tuple[LanguageModel, Any, str], n_rows: int, n_prompt: int,
    args: argparse.Namespace, device: torch.device,
) -> None:  # fmt: skip
    ours, stock, _ = pair
    vocab = ours.cfg.vocab_size
    g = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, vocab, (n_rows, n_prompt), generator=g).tolist()
    precision = torch.bfloat16 if device.type == "cuda" else None
    rows = row_model(ours, precision=precision, backend=args.backend)
    runs = [writer(rows, vocab, prompts), stock_writer(stock, prompts, device)]
    texts = [run(args.new + 1, lambda: None) for run in runs]  # warms up as well
    clock = clock_of(device)
    found = [[measure(run, args.new, clock) for run in runs] for _ in range(args.rounds)]
    rates = [statistics.median(n_rows * args.new / r[i].decode_s for r in found) for i in (0, 1)]
    ms = [statistics.median(1e3 * r[i].decode_s / args.new for r in found) for i in (0, 1)]
    ratios = sorted(r[1].decode_s / r[0].decode_s for r in found)
    spread = f"{statistics.median(ratios):6.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    prefill = [statistics.median(1e3 * r[i].prefill_s for r in found) for i in (0, 1)]
    same = sum(a == b for a, b in zip(*texts, strict=True))
    print(
        f"{name:27s} {n_rows:4d} {n_prompt:7d} | {rates[0]:8.0f} {rates[1]:8.0f} {ms[0]:7.2f} "
        f"{ms[1]:7.2f} {spread:18s} | {prefill[0]:8.0f} {prefill[1]:8.0f} "
        f"{prefill[1] / prefill[0]:6.2f} | {same} of {n_rows}",
        flush=True,
    )
    problem = getattr(getattr(rows, "graphs", None), "problem", None)
    if problem:
        print(f"  not recorded as a graph: {problem}")


def profile(
    name: str, ours: LanguageModel, n_prompt: int, args: argparse.Namespace, device: torch.device
) -> None:
    """Where the time of our steps goes, by operation of PyTorch; it does not see our kernels."""
    precision = torch.bfloat16 if device.type == "cuda" else None
    rows = row_model(ours, precision=precision, backend=args.backend)
    rows.read(0, [[1] * n_prompt])
    for _ in range(3):
        rows.step([2])
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    n_steps = 20
    with torch.profiler.profile(activities=kinds) as record:
        for _ in range(n_steps):
            rows.step([2])
        if device.type == "cuda":
            torch.cuda.synchronize()
    field = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(record.key_averages(), key=lambda e: -getattr(e, field))
    total = sum(getattr(e, field) for e in events)
    print(f"\n{name}, one row, context {n_prompt}: {total / n_steps / 1e3:.2f} ms per token in")
    for event in events[:8]:
        share = getattr(event, field) / total
        print(f"  {share:5.1%}  {event.count / n_steps:6.1f} calls  {event.key[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", default="small", choices=list(SETS))
    parser.add_argument("--only", nargs="*", help="parts of the names of models")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--new", type=int, default=32, help="tokens written after the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=["torch", "kernels"], help="of ours; else the fastest")
    parser.add_argument("--profile", action="store_true", help="say where our time goes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    device = torch.device(args.device)
    if device.type == "cpu":  # where its kernels are installed the stock layers would take them
        import_utils.is_flash_linear_attention_available = lambda: False
    sizes, names = SETS[args.models]
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {device.type}, "
        f"{args.threads} thread(s), {sizes}, {args.new} tokens, {args.rounds} rounds"
    )
    print(
        "                                         | decode tok/s      ms per step"
        "                          | prefill, ms              | same"
    )
    print(
        "model                       rows context |     ours    stock    ours   stock  ratio"
        "             |     ours    stock ratio | text"
    )
    for name, tree in catalogue(**sizes).items():
        wanted = any(part in name for part in args.only) if args.only else True
        if not wanted or (names is not None and name not in names):
            continue
        pair = build_pair(tree, device)
        for n_prompt in args.contexts:
            for n_rows in args.rows:
                compare(name, pair, n_rows, n_prompt, args, device)
        if args.profile:
            profile(name, pair[0], args.contexts[-1], args, device)


if __name__ == "__main__":
    main()
