"""Measures exported folders with plain `transformers`. Run as a script; imports nothing of mixlab.

    python -I parity_probe.py JOBS.json

JOBS.json holds a list of jobs, see `Job` in parity.py; `reference` is a file with `tokens` (B, T)
and the `logits` (B, T, vocab) and `greedy` (n, n_new) of the model that was exported. For each job
one line of JSON is printed. Everything runs in float32 on the CPU.
"""

import json
import sys

import safetensors.torch
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import import_utils

sys.modules["mixlab"] = None  # an import of it fails from here on
# Kernels of flash-linear-attention need a GPU, and would be taken wherever they are installed.
import_utils.is_flash_linear_attention_available = lambda: False


MARK = "measured: "


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
def stepwise(model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a prefill of half the tokens, then of one token at a time, with the cache."""
    half = (tokens.shape[1] + 1) // 2
    pieces = [tokens[:, :half], *tokens[:, half:].split(1, dim=1)]
    cache, logits = None, []
    for piece in pieces:
        out = model(input_ids=piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


@torch.no_grad()
def measure(job: dict) -> dict:
    folder = job["folder"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reference = safetensors.torch.load_file(job["reference"])
    tokens, want = reference["tokens"], reference["logits"]
    got = model(input_ids=tokens, use_cache=False).logits
    found = {
        "architecture": type(model).__name__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "largest_logit_difference": largest(got, want),
        "largest_logit": want.abs().max().item(),
    }
    uses_cache = model.generation_config.use_cache is not False
    found["cached_against_uncached"] = largest(stepwise(model, tokens), got) if uses_cache else None
    equal = 0
    for ids, expected in zip(job["ids"], reference["greedy"], strict=True):
        prompt = torch.tensor([ids])
        out = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
            max_new_tokens=job["n_new"], min_new_tokens=job["n_new"], eos_token_id=None,
        )  # fmt: skip
        equal += bool((out[0, len(ids) :] == expected).all())
    found["greedy_equal"], found["greedy_prompts"] = equal, len(job["ids"])
    if job["texts"]:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        plain = [tokenizer(text, add_special_tokens=False).input_ids for text in job["texts"]]
        usual = [tokenizer(text).input_ids for text in job["texts"]]
        found["tokenizer_equal"] = plain == job["text_ids"]
        found["tokenizer_adds"] = usual != plain
        if job["chat_ids"] is not None:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": job["question"]}],
                add_generation_prompt=True, tokenize=True, return_dict=False,
            )  # fmt: skip
            found["chat_template_equal"] = ids == job["chat_ids"]
    return found


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    for job in jobs:
        try:
            found = measure(job)
        except Exception as error:  # whatever a loader raises is the finding
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(MARK + json.dumps(found), flush=True)
    assert not any(name.startswith("mixlab.") for name in sys.modules)


if __name__ == "__main__":
    main()
