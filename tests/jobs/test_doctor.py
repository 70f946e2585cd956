"""What the doctor says about GPU kernels, on machines made up by hand."""

import pytest
import torch

from mixlab.jobs import doctor
from mixlab.ops.gated_delta_rule import kernels

GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """machine(capability, triton, packages): a GPU of that kind with those packages."""

    def make(capability, triton, packages):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))
        monkeypatch.setattr(kernels, "_capability", lambda _: capability)
        for module in (kernels, doctor):
            monkeypatch.setattr(module, "TRITON", triton)
            monkeypatch.setattr(module, "INSTALLED", frozenset(packages))

    return make


def test_triton_that_miscompiles_on_hopper_is_explained_with_the_way_out(machine):
    machine(9, (3, 6, 0), {"fla"})
    _, found, meaning = doctor._triton_row()
    assert found == "3.6.0"
    assert "install tilelang" in meaning and "3.7.1 or newer" in meaning
    assert doctor._delta_rule_row(GPU, 64)[1] != "fla"


@pytest.mark.parametrize(
    ("capability", "triton", "packages"),
    [(9, (3, 6, 0), {"fla", "tilelang"}), (9, (3, 7, 1), {"fla"}), (8, (3, 6, 0), {"fla"})],
)
def test_no_alarm_where_the_trap_is_not(machine, capability, triton, packages):
    machine(capability, triton, packages)
    assert "serves" in doctor._triton_row()[2]
    assert "fla" in " ".join(doctor._delta_rule_row(GPU, 64))


def test_flash_qla_is_offered_and_named_where_it_runs(machine):
    machine(9, (3, 6, 0), {"fla", "tilelang"})
    assert "pip install flash-qla" in doctor._flash_qla_row(GPU)[2]
    machine(9, (3, 6, 0), {"fla", "flash_qla", "tilelang"})
    assert doctor._delta_rule_row(GPU, 128)[1] == "flash_qla"
