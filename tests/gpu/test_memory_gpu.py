"""A model on a GPU that is made to look small: what is chosen fits there, and learns the same."""

import pytest
import torch
from screens import Quiet

from mixlab.data.synthetic import RandomText
from mixlab.jobs.config import RunConfig, load_config
from mixlab.jobs.device import settle_hardware
from mixlab.jobs.memory import GB, fit_memory
from mixlab.jobs.session import ready_model
from mixlab.training.language_modelling import LanguageModelling
from mixlab.training.objective import update

pytestmark = pytest.mark.gpu

# 100M parameters take 1.6 GB with their state; the whole batch takes some 10 GB of activations.
BASE = [
    "model.n_layers=6", "model.pattern={block: full, at: [5], rest: linear}", "data.seq_len=512",
    "train.batch_size=48", "train.micro_batch_size=48", "train.compile=false", "train.device=cuda",
]  # fmt: skip


@pytest.fixture(autouse=True)
def whole_card():
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def trained(config: RunConfig, n_updates: int = 3) -> tuple[list[float], int]:
    """Losses of some updates, and the most memory that they took."""
    hardware = settle_hardware(config.train)
    torch.cuda.reset_peak_memory_stats()
    model = ready_model(config, hardware).train()
    optimizer = config.train.optimizer.build(model.named_parameters())
    objective = LanguageModelling(
        model,
        RandomText(config.model.vocab_size, config.data.seq_len, 1),
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        compute_dtype=hardware.compute_dtype,
    )
    losses = []
    for i in range(n_updates):
        metrics = update(
            objective, optimizer, i * config.train.batch_size, lr_factor=1.0, max_grad_norm=1.0
        )
        losses.append(float(metrics.loss_nats))
    objective.close()
    return losses, torch.cuda.max_memory_allocated()


def test_a_small_card_gets_smaller_passes_and_the_same_losses():
    whole = load_config("hybrid-sparse-17", BASE)
    assert isinstance(whole, RunConfig)
    losses, peak = trained(whole)
    torch.cuda.empty_cache()
    limit = (2.2 * GB + peak) / 2 / GB  # between what the weights take and what the batch takes
    small = load_config("hybrid-sparse-17", [*BASE, f"train.memory={limit:.2f}"])
    hardware, screen = settle_hardware(small.train), Quiet()
    fitted = fit_memory(small, hardware, screen)
    assert isinstance(fitted, RunConfig) and screen.notes
    cut = fitted.train.micro_batch_size
    assert cut is not None and (cut < 48 or fitted.train.activation_checkpointing)
    found, found_peak = trained(fitted)
    assert found_peak < limit * GB < peak
    assert found == pytest.approx(losses, rel=2e-3)  # bfloat16 products, other shapes


def test_a_card_with_room_keeps_the_batch_whole():
    batch = ["train.micro_batch_size=12", "train.batch_size=12", "train.memory=auto"]
    config = load_config("hybrid-sparse-17", [*BASE, *batch])
    fitted = fit_memory(config, settle_hardware(config.train), Quiet())
    assert fitted.train.micro_batch_size == 12 and not fitted.train.activation_checkpointing
