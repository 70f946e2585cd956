"""A tiny recipe of two kinds of block, for studies that are designed or trained."""

from pathlib import Path

import pytest

PATTERNS = """\
about: Two kinds of block, so small that training takes a moment.
data:
  corpus: {{kind: text, path: "{corpus}", document: file}}
  tokenizer: {{kind: bpe, vocab_size: 300}}
  seq_len: 16
model:
  vocab_size: 300
  d_model: 16
  n_layers: 2
  max_seq_len: 64
  blocks:
    full:
      sequence_mixer: {{kind: attention, n_heads: 2, head_dim: 8}}
      channel_mixer: {{kind: mlp, d_ff: 24}}
    linear:
      sequence_mixer: {{kind: gated_deltanet, n_heads: 2, head_dim: 8}}
      channel_mixer: {{kind: mlp, d_ff: 24}}
  pattern: [linear, full]
train:
  length: 200 steps
  batch_size: 4
  optimizer: {{kind: adamw, lr: 0.01}}
  device: cpu
  precision: fp32
  threads: 1
eval: {{every: 100, n_tokens: 256, batch_size: 8}}
checkpoint: {{every: 4}}
sample: {{n: 1, max_new_tokens: 4}}
"""


@pytest.fixture
def study_lab(lab: Path, tiny_corpus: Path) -> Path:
    """An empty working folder with `patterns.yaml`."""
    (lab / "patterns.yaml").write_text(PATTERNS.format(corpus=tiny_corpus))
    return lab
