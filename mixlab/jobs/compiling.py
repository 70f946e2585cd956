"""torch.compile of a language model's blocks, one kind of block at a time.

Blocks of one kind differ in nothing but their weights, which compiled code takes as inputs: twelve
layers of two kinds are two compilations, and a longer model compiles no longer.
"""

import os

import torch

from mixlab.core.cache import cache_dir
from mixlab.nn.language_model import LanguageModel

GRAPHS_PER_FUNCTION = 64
"""PyTorch gives up on a function after 8 forms of it. All kinds of blocks are one function, each in
the forms that training and evaluation need."""


def compile_blocks(model: LanguageModel) -> None:
    """Let every block of `model` be compiled at its first call; results are kept between runs."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torch-compile"))
    torch._dynamo.config.recompile_limit = GRAPHS_PER_FUNCTION
    for block in model.blocks:
        block.compile()
