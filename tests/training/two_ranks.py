"""One rank of two: gradients and figures of a batch of uneven rows, written by the first one.

two_ranks.py FOLDER    with the environment of torchrun
"""

import sys
from pathlib import Path

import torch

from mixlab.core.config import decode
from mixlab.data.batch import IGNORE, Batch
from mixlab.jobs.ranks import joined_ranks
from mixlab.nn.language_model import LanguageModelConfig, build_model
from mixlab.parallel.shards import all_rows
from mixlab.training.gradient_sums import GradientSums
from mixlab.training.language_modelling import LanguageModelling
from mixlab.training.sharding import shard

ROWS, MICRO = 8, 2
PARALLEL = ("ddp", "fsdp", "replayed")
CHANNELS = {
    "dense": {"kind": "mlp", "d_ff": 24},
    "moe": {
        "kind": "moe", "n_experts": 4, "n_active_experts": 2, "d_expert": 8, "scores": "sigmoid",
        "bias_update_rate": 0.25, "aux_loss_weight": 0.1, "z_loss_weight": 0.01,
    },
}  # fmt: skip


def model(channel: str):
    """Two layers in float64: what is left of a difference is no rounding worth speaking of."""
    tree = {
        "vocab_size": 13, "d_model": 16, "n_layers": 2,
        "blocks": {"full": {
            "sequence_mixer": {"kind": "attention", "n_heads": 2, "head_dim": 8},
            "channel_mixer": CHANNELS[channel],
        }},
    }  # fmt: skip
    return build_model(decode(LanguageModelConfig, tree), 0).double()


class Rows:
    """A loader of one batch: documents packed, targets from all of a row to none."""

    seed = 0

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        tokens = torch.randint(13, (ROWS, 6), generator=g)
        targets = torch.randint(13, (ROWS, 6), generator=g)
        for row in range(ROWS):
            targets[row, max(0, 6 - row) :] = IGNORE  # the second rank has far fewer
        ends = torch.arange(6)[None] >= torch.arange(ROWS)[:, None] % 5 + 1
        self._whole = Batch(tokens, targets, ends.to(torch.int32))

    def batch(self, position: int, n: int) -> Batch:
        return self._whole.rows(slice(position, position + n))


def outcome(objective: LanguageModelling) -> dict[str, torch.Tensor]:
    """Loss, norm, gradients and the experts' bias after one update."""
    metrics = objective.accumulate(0)
    named = objective.model.named_parameters()
    found = {f"gradient of {n}": all_rows(p.grad).clone() for n, p in named if p.grad is not None}
    objective.after_update()
    found |= {n: b.clone() for n, b in objective.model.named_buffers() if n.endswith("_bias")}
    found["loss"], found["norm"] = metrics.loss_nats, metrics.grad_norm
    found["targets"] = torch.tensor(metrics.n_targets)
    if metrics.aux_loss is not None:
        found["aux loss"] = metrics.aux_loss
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined_ranks() as world:
        for channel in CHANNELS:
            for parallel in PARALLEL:
                own = model(channel)
                if parallel == "fsdp":
                    shard(own, world, None)
                objective = LanguageModelling(
                    own, Rows(), batch_size=ROWS, micro_batch_size=MICRO, world=world
                )
                # Buckets so small that many are sent, and the last one is not full.
                objective._sums = sums = GradientSums(
                    own, world, bucket_bytes=4000,
                    overlaps=channel == "dense" and parallel != "replayed",
                )  # fmt: skip
                assert parallel != "replayed" or sums.is_separate
                objective._run.keywords["sums"] = sums
                if parallel == "replayed":  # as on a GPU, but run instead of recorded
                    objective.replay_by(lambda run, parameters: run)
                found = outcome(objective)
                if world.is_first:
                    torch.save(found, folder / f"{channel}-{parallel}.pt")
        world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
