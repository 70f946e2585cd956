"""The two trainings of `curves.py`: ours, and the published recipe as its authors train it."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from training_peers import classes, peer_settings
from training_workloads import WORKLOADS

from mixlab.data.loader import Loader
from mixlab.data.prepare import PreparedData
from mixlab.jobs.config import RunConfig
from mixlab.jobs.device import Hardware
from mixlab.jobs.session import open_session, wanted_windows
from mixlab.ops.cross_entropy import score_tokens
from mixlab.training.objective import update
from mixlab.training.schedule import lr_factor

N_STEPS = 300
"""Updates of the published run."""


class Side(Protocol):
    """One of the two trainings."""

    label: str
    n_params: int
    context: dict[str, Any]  # what to read a loss beside

    def step(self, i: int) -> Tensor:
        """Make update `i` and return its loss, still on the device."""
        ...

    def evaluate(self) -> float:
        """Nats per token on the validation windows."""
        ...


class Ours:
    """The recipe, as `mixlab train` runs it."""

    def __init__(self, config: RunConfig, data: PreparedData, hardware: Hardware) -> None:
        self._train, self._n_steps = config.train, int(config.train.length.amount)
        self._session = open_session(config, data, hardware)
        self._session.model.train()
        self.label = f"mixlab {config.name}"
        self.n_params = sum(p.numel() for p in self._session.model.parameters())
        self.context = self._session.context

    def step(self, i: int) -> Tensor:
        metrics = update(
            self._session.objective,
            self._session.optimizer,
            i * self._train.batch_size,
            lr_factor=lr_factor(self._train.schedule, None, i, self._n_steps),
            max_grad_norm=self._train.max_grad_norm,
        )
        return metrics.loss_nats

    def evaluate(self) -> float:
        return float(self._session.evaluate()["loss_nats"])


class Published:
    """FLA's hybrid in bfloat16 throughout, with its authors' optimizer and schedule."""

    def __init__(self, config: RunConfig, data: PreparedData, hardware: Hardware) -> None:
        self._config, self._device = config, hardware.device
        self._n_steps = int(config.train.length.amount)
        shape = next(w for w in WORKLOADS if w.key == "published").shape
        settings = peer_settings("fla", shape) | {"intermediate_size": 4 * shape.width}
        family, dtype = "fla", torch.bfloat16
        if hardware.device.type == "cpu":
            family, dtype = "llama", torch.float32
            settings = peer_settings("llama", shape.tiny()) | {
                "vocab_size": data.tokenizer.vocab_size
            }
        torch.manual_seed(config.seed)
        make_config, make_model = classes(family)
        with hardware.device:
            model = make_model(make_config(**settings))
        self._model = model.to(dtype).train()
        self._parameters = list(model.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )
        seq_len = config.data.seq_len
        self._loader = Loader(data.split("train"), seq_len, config.seed)
        self._held_out = Loader(data.split("validation"), seq_len, config.seed)
        self._n_windows = min(wanted_windows(config), self._held_out.n_windows)
        self.label = "published recipe, FLA"
        if self._n_steps < N_STEPS:
            self.label += f", {self._n_steps} updates"
        self.n_params = sum(p.numel() for p in self._parameters)
        self.context: dict[str, Any] = {}

    def _factor(self, i: int) -> float:
        warm_up = self._config.train.schedule.warmup_steps
        if i < warm_up:
            return i / warm_up
        return max(0.1, (self._n_steps - i) / (self._n_steps - warm_up))

    def step(self, i: int) -> Tensor:
        size = self._config.train.batch_size
        tokens = self._loader.batch(i * size, size).tokens.to(self._device, non_blocking=True)
        loss = self._model(input_ids=tokens, labels=tokens, use_cache=False).loss  # it shifts them
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = 2e-3 * self._factor(i)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self) -> float:
        self._model.eval()
        batches = self._held_out.window_batches(self._n_windows, self._config.eval.batch_size)
        total, n_targets = 0.0, 0
        for batch in batches:
            batch = batch.to(self._device)
            h = self._model.model(input_ids=batch.tokens, use_cache=False)[0]
            targets = batch.targets.flatten()
            scores = score_tokens(h.flatten(0, 1), self._model.lm_head.weight, targets)
            total += float(scores.nats.double().sum())
            n_targets += targets.numel()
        self._model.train()
        return total / n_targets
