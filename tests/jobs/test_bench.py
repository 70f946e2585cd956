"""What `mixlab bench` measures, held against a stub whose phases take a known time."""

import time
from types import SimpleNamespace

import pytest
import torch

from mixlab.core.errors import ConfigError
from mixlab.jobs import bench as benches
from mixlab.jobs.device import Hardware
from mixlab.jobs.kernel_times import kernel_times, kind_of_kernel
from mixlab.jobs.smoke import load_shrunk
from mixlab.training import phases
from mixlab.training.objective import StepMetrics


class Sleeper:
    """An objective whose data take 2 ms, forward 4 ms and backward 8 ms."""

    model = torch.nn.Linear(2, 2)

    def accumulate(self, position):
        time.sleep(0.002)
        phases.begin("forward")
        time.sleep(0.004)
        phases.begin("backward")
        time.sleep(0.008)
        one = torch.ones(())
        return StepMetrics(one, one, 1, None, {}, n_examples=3)

    def after_update(self):
        pass


def test_phases_are_told_apart():
    optimizer = SimpleNamespace(step=lambda *given: time.sleep(0.016), zero_grad=lambda: None)
    config = SimpleNamespace(train=SimpleNamespace(max_grad_norm=None))
    hardware = Hardware(torch.device("cpu"), "fp32")
    found = benches._Updates(Sleeper(), optimizer, config, hardware).phased(5)
    # A sleep is never shorter than asked for; how much longer depends on the machine, so only the
    # order is held, in which each differs from the next by a factor of two.
    assert list(found) == ["data", "forward", "backward", "optimizer"]
    assert 2 <= found["data"] < found["forward"] < found["backward"] < found["optimizer"]


def test_marks_cost_nothing_and_leave_nothing():
    heard = []
    with phases.heard_by(heard.append):
        phases.begin("data")
    phases.begin("end")
    assert heard == ["data"]


def test_a_small_recipe(quiet):
    config = load_shrunk("moe", ["train.device=cpu", "train.threads=1"])
    state = torch.get_rng_state()
    found = benches.bench(config, quiet, n_updates=3, mean_document=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(found.ms) == 3 and found.tokens_per_update == config.tokens_per_step
    assert found.tokens_per_s == pytest.approx(1000 * config.tokens_per_step / found.median_ms)
    kinds = {kernel.kind for kernel in found.kernels}
    assert {"matrix products", "attention", "elementwise"} <= kinds
    assert found.backends == [
        "experts: attention by sdpa",
        "experts: moe by grouped",
        "optimizer: adamw by fused",
    ]
    facts, rows = benches.rows(found)
    assert len(rows) == len(kinds) and dict(facts)["speed"].endswith("tokens/s")


def test_too_few_updates(quiet):
    with pytest.raises(ConfigError, match="--updates = 2: expected at least 3"):
        benches.bench(load_shrunk("moe"), quiet, n_updates=2)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("chunk_gated_delta_rule_fwd_kernel_h", "gated delta rule"),
        ("void at::native::vectorized_elementwise_kernel<4, MulFunctor>", "elementwise"),
        ("void multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and casts"),
        ("triton_poi_fused_silu_3", "compiled elementwise"),
        ("triton_poi_fused_cat_mul_silu_silu_backward_view_2", "compiled elementwise"),
        ("triton_per_fused__fused_rms_norm__to_copy__unsafe_view_", "norm"),
        ("row_attention_backward", "attention"),
        ("swiglu_product", "matrix products"),
        ("swiglu_backward", "elementwise"),
        ("scan_states", "gated delta rule"),
        ("void cudnn::fusion::convert_dq_to_16bits<true>(void const*)", "attention"),
        ("_nats_kernel", "cross-entropy"),
        ("causal_conv1d_fwd_kernel", "convolution"),
    ],
)
def test_kinds_by_name(name, kind):
    assert kind_of_kernel(name) == kind


def test_a_profile_counts_each_call_once():
    a = torch.randn(64, 64)
    rows = {row.kind: row for row in kernel_times(lambda: a @ a, torch.device("cpu"), 3)}
    assert rows["matrix products"].n_calls >= 1 and rows["matrix products"].ms > 0
