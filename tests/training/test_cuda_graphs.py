"""When updates are recorded and replayed, decided without a device; the recording itself is for a
GPU (tests/gpu)."""

import pytest
import torch
from torch import nn

from mixlab.data.synthetic import RandomText
from mixlab.ops.packing import CHUNK, Packing, chunk_table
from mixlab.training import phases
from mixlab.training.cuda_graphs import LAUNCH_SHARE, Replayer
from mixlab.training.language_modelling import MicroBatch


class Device:
    """Counts what a replayer does with updates; inputs are (form, value)."""

    def __init__(self, share=0.9, error=None, has_room=False):
        self.share, self.error, self.has_room = share, error, has_room
        self.log = []

    def run(self, inputs):
        self.log.append("run")
        return sum(one.value for one in inputs)

    def launch_share(self, run):
        self.log.append("timed")
        return run(), self.share

    def record(self, run, parameters, inputs):
        if self.error:
            raise self.error
        self.log.append("recorded")
        device = self

        class Graph:
            def replay(self, inputs):
                device.log.append("replay")
                return sum(one.value for one in inputs)

        return Graph()

    def replayer(self, **options):
        parameter = nn.Parameter(torch.zeros(1))
        return Replayer(
            self.run, [parameter], record=self.record, launch_share=self.launch_share,
            has_room=lambda: self.has_room, **options,
        )  # fmt: skip


class One:
    def __init__(self, value, form=("a",)):
        self.value, self._form = value, form

    def form(self):
        return self._form


def test_a_form_is_timed_then_recorded_then_replayed():
    device = Device()
    replayer = device.replayer()
    assert [replayer([One(i)]) for i in range(6)] == list(range(6))
    assert device.log == ["run", "run", "timed", "run", "recorded", "replay", "replay", "replay"]
    assert "replayed" in replayer.verdict


@pytest.mark.parametrize("has_room", [True, False])
def test_a_busy_device_spends_memory_only_where_there_is_plenty(has_room):
    device = Device(share=LAUNCH_SHARE / 2, has_room=has_room)
    replayer = device.replayer()
    for i in range(6):
        replayer([One(i)])
    assert ("recorded" in device.log) is has_room
    assert ("replayed" if has_room else "35%") in replayer.verdict


def test_always_does_not_look_at_the_time():
    device = Device(share=0.0)
    replayer = device.replayer(always=True)
    for i in range(4):
        replayer([One(i)])
    assert device.log == ["run", "run", "recorded", "replay", "replay"]


def test_what_cannot_be_recorded_is_said_and_run():
    device = Device(error=RuntimeError("operation not permitted\nmore"))
    replayer = device.replayer()
    assert [replayer([One(i)]) for i in range(6)] == list(range(6))
    assert device.log.count("run") == 6
    assert replayer.verdict.endswith("operation not permitted")


def test_forms_are_apart_and_some_have_none():
    device = Device()
    replayer = device.replayer(always=True)
    for i in range(4):
        replayer([One(i, ("a",))])
        replayer([One(i, ("b",)), One(i, ("b",))])
        replayer([One(i, None)])
    assert device.log.count("recorded") == 2
    assert device.log.count("replay") == 4


def test_phases_are_seen_while_somebody_listens():
    device = Device()
    replayer = device.replayer(always=True)
    for i in range(4):
        replayer([One(i)])
    with phases.heard_by(lambda phase: None):
        replayer([One(9)])
    assert device.log[-1] == "run"


@pytest.mark.parametrize("mean_document", [None, 5, 40])
def test_padding_keeps_the_documents(mean_document):
    batch = RandomText(50, 96, 0, mean_document).batch(0, 3)
    packing = Packing(batch.segments)
    n = len(packing.cu_seqlens) - 1
    padded = packing.padded(n + 7)
    assert padded.cu_seqlens.tolist() == packing.cu_seqlens.tolist() + [288] * 7
    indices, offsets = chunk_table(padded.cu_seqlens)
    assert torch.equal(padded.chunk_offsets, offsets)
    assert torch.equal(padded.chunk_indices[: len(indices)], indices)
    assert (padded.chunk_indices[len(indices) :] == torch.tensor([n + 6, 0])).all()
    # As long for any documents of that number.
    assert len(padded.chunk_indices) == 288 // CHUNK + n + 7


def test_inputs_are_written_where_a_graph_reads_them():
    text = RandomText(50, 96, 0, 20)
    micro = [MicroBatch.of(text.batch(i, 3)) for i in range(8)]
    alike = [one for one in micro if one.form() == micro[0].form()]
    assert len(alike) > 1, "documents of nearly one number have one form"
    resident = alike[0].resident(torch.device("cpu"))
    places = [resident.batch.tokens.data_ptr(), resident.packing.cu_seqlens.data_ptr()]
    kept = alike[0].batch.tokens.clone()
    resident = MicroBatch(
        resident.batch._replace(tokens=kept.clone(), targets=kept.clone()), 0, resident.packing
    )
    alike[1].write_into(resident)
    assert torch.equal(resident.batch.tokens, alike[1].batch.tokens)
    assert torch.equal(resident.batch.targets, alike[1].batch.targets)
    n = len(alike[1].packing.cu_seqlens)
    assert torch.equal(resident.packing.cu_seqlens[:n], alike[1].packing.cu_seqlens)
    assert (resident.packing.cu_seqlens[n:] == 288).all()
    assert resident.packing.cu_seqlens.data_ptr() == places[1]
