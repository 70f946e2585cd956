"""Settings and listeners of the tests of jobs."""

import os

from screens import Quiet

NOISY = ("model.dropout=0.1", "train.ema={rate: 0.9}", "train.micro_batch_size=2")

PUZZLES = """\
kind: refine
seed: 3
data: {task: {kind: sudoku, size: 4, blanks: [4, 6]}, n_train: 48, n_validation: 8, n_test: 8}
model:
  vocab_size: 6
  grid: [4, 4]
  box: [2, 2]
  d_model: 8
  H_cycles: 2
  L_cycles: 1
  block:
    sequence_mixer: {kind: attention, n_heads: 2, head_dim: 4}
    channel_mixer: {kind: mlp, d_ff: 12}
  halting: {kind: bce, halt_max_steps: 4, halt_exploration_prob: 0.5, q_head_bias_init: 0.0}
train:
  length: 18 steps
  batch_size: 4
  optimizer: {kind: muon, lr: 0.01}
  ema: {rate: 0.9}
  device: cpu
  precision: fp32
  threads: 1
eval: {every: 6}
checkpoint: {every: 3}
checks: "off"
"""
"""A recipe of puzzles so small that training it takes a moment."""


class Signalling(Quiet):
    """Sends this process a signal while update `at_step` is made, which is then the last one."""

    def __init__(self, at_step: int, number: int, times: int = 1) -> None:
        super().__init__()
        self._at_step, self._number, self._left = at_step, number, times

    def _send(self, step: int) -> None:
        while step == self._at_step - 1 and self._left:
            self._left -= 1
            os.kill(os.getpid(), self._number)

    def training(self, row, n_steps, eta_s):
        self._send(row["step"])

    def evaluation(self, row, context):
        self._send(row["step"])
