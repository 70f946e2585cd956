"""The certificate: an exported folder, loaded by plain `transformers`, against our model.

Our side computes logits and greedy text here; the other side runs in a process of its own that
cannot import mixlab (see `parity_probe.py`). What is compared: logits on fixed tokens, greedy
tokens from fixed prompts, the stock model's own cached against uncached logits, and the tokenizer.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from mixlab.core.errors import LabError, MissingPackageError
from mixlab.data.tokenizers.base import Tokenizer
from mixlab.nn.language_model import LanguageModel

LIMIT = 1e-4
"""Largest difference of a logit that counts as equal, in float32; where logits exceed 1 it is that
share of the largest. Sums in another order err by some 1e-6."""
TEXTS = ("The ", "def main():\n    ", "1 + 1 = 2\n", "Zwölf große Bären: 12,5 %.\n")
QUESTION = "What is 2 + 3?"
N_ROWS, N_TOKENS, N_NEW = 2, 48, 16
TIMEOUT_S = 3600
MARK = "measured: "
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "CUDA_VISIBLE_DEVICES": "",  # one device, the same everywhere
}
"""Laid over the environment of the process that measures."""


class ParityError(LabError):
    """The exported folder does not compute what the run computes; it is a fault of mixlab."""


class Job(NamedTuple):
    """One folder to be measured, and what is expected of it."""

    folder: Path
    reference: Path
    texts: tuple[str, ...]
    text_ids: list[list[int]]
    ids: list[list[int]]  # prompts of the greedy comparison
    chat_ids: list[int] | None = None  # of `QUESTION` by the chat template, up to the answer


def require_transformers() -> None:
    """Refuse before any work where the measurement cannot be made.

    Raises:
        MissingPackageError: names the extra to install.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackageError(
            "transformers", "mixlab export, which proves each folder by loading it,", "hf"
        )


@torch.no_grad()
def prepare(
    folder: Path, model: LanguageModel, tokenizer: Tokenizer | None, reference: Path
) -> Job:
    """Run our side, in float32 on the CPU, and write what is expected to the file `reference`."""
    model = model.to("cpu", torch.float32).eval()
    n = max(1, min(N_TOKENS, model.cfg.max_seq_len))
    generator = torch.Generator().manual_seed(0)
    vocab = model.cfg.vocab_size
    tokens = torch.randint(0, vocab, (N_ROWS, n), generator=generator)
    texts = TEXTS if tokenizer is not None else ()
    text_ids = [tokenizer.encode(text) for text in texts] if tokenizer is not None else []
    room = max(1, model.cfg.max_seq_len - N_NEW)
    prompts = [ids[:room] for ids in text_ids if ids] or tokens[:, : min(7, room)].tolist()
    n_new = min(N_NEW, model.cfg.max_seq_len - 1)
    greedy = torch.stack([_greedy(model, ids, n_new) for ids in prompts])
    safetensors.torch.save_file(
        {"tokens": tokens, "logits": model(tokens).logits.contiguous(), "greedy": greedy}, reference
    )
    return Job(folder, reference, tuple(texts), text_ids, prompts)


def _greedy(model: LanguageModel, ids: list[int], n_new: int) -> Tensor:
    """(n_new,) likeliest tokens one after the other, with the decoding state."""
    state, piece, found = model.initial_state(1), torch.tensor([ids]), []
    for _ in range(n_new):
        out = model(piece, state, last_only=True)
        state, piece = out.state, out.logits[:, -1].argmax(dim=-1, keepdim=True)
        found.append(piece)
    return torch.cat(found, dim=1)[0]


def measure(
    jobs: Sequence[Job], work: Path, environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Load every folder with plain transformers and compare, all in one process.

    `work` is a folder for its files, `environment` the caller's own, which the process inherits.

    Raises:
        ParityError: the process did not answer.
    """
    listing = work / "jobs.json"
    plain = [
        {
            "folder": str(job.folder), "reference": str(job.reference), "texts": job.texts,
            "text_ids": job.text_ids, "ids": job.ids, "n_new": _n_new(job),
            "question": QUESTION, "chat_ids": job.chat_ids,
        }
        for job in jobs
    ]  # fmt: skip
    listing.write_text(json.dumps(plain), encoding="utf-8")
    probe = Path(__file__).with_name("parity_probe.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(probe), str(listing)],
            capture_output=True, text=True, encoding="utf-8", timeout=TIMEOUT_S, check=False,
            env={**environment, **OFFLINE},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ParityError(f"loading the folder took more than {TIMEOUT_S} seconds.") from None
    lines = [line for line in done.stdout.split("\n") if line.startswith(MARK)]
    found = [json.loads(line.removeprefix(MARK)) for line in lines]
    if len(found) != len(jobs):
        raise ParityError(
            f"transformers could not be run on the exported folder: {done.stderr.strip()[-500:]}"
        )
    return found


def _n_new(job: Job) -> int:
    with safetensors.safe_open(job.reference, "pt") as file:
        return file.get_slice("greedy").get_shape()[1]


def judge(found: dict[str, Any]) -> str:
    """Why a measurement is no certificate; empty if it is one."""
    if "error" in found:
        return f"transformers cannot load or run it ({found['error']})"
    limit = LIMIT * max(1.0, found["largest_logit"])
    for name, text in (
        ("largest_logit_difference", "its logits differ from the run's by"),
        ("cached_against_uncached", "its cached logits differ from its uncached ones by"),
    ):
        value = found[name]
        if value is not None and not value <= limit:
            return f"{text} {value:.2g}, more than {limit:.2g}"
    if found.get("tokenizer_equal") is False:
        return "its tokenizer gives other tokens than the run's"
    if found.get("chat_template_equal") is False:
        return "its chat template gives other tokens than the run's"
    return ""
