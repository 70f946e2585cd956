"""Trained models as folders that stock software loads, and such folders as runs.

The table below is the whole list of architectures; each lives in the file of its family. Where
several fit, the first is taken, so what is simple and widely served stands first.
"""

from mixlab.export.deepseek import DeepseekV3
from mixlab.export.dense import Llama, Qwen2, Qwen3
from mixlab.export.hrm_text import HrmText
from mixlab.export.mixtures import Mixtral, Olmoe, Qwen3Moe
from mixlab.export.qwen_hybrid import Qwen3Next, Qwen35Text
from mixlab.export.target import Target

TARGETS: dict[str, Target] = {
    target.model_type: target
    for target in (
        Qwen3(), Qwen2(), Llama(), Qwen3Moe(), Olmoe(), Mixtral(), DeepseekV3(), Qwen35Text(),
        Qwen3Next(), HrmText(),
    )
}  # fmt: skip
"""Every architecture, by the name that config.json has for it."""
