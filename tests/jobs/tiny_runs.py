"""Settings and listeners of the tests of jobs."""

import os

from screens import Quiet

NOISY = ("model.dropout=0.1", "train.ema={rate: 0.9}", "train.micro_batch_size=2")


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
