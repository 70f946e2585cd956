"""The court around a run: its cases, its file, its cache, and going on with a run."""

import signal
from dataclasses import replace

import pytest
import torch
from run_contents import assert_same_run
from screens import Quiet
from tiny_runs import NOISY, Signalling

from mixlab.core.config import override, read_yaml
from mixlab.core.errors import BackendError, RunError
from mixlab.core.run_dir import RunDir
from mixlab.jobs.bench import backends
from mixlab.jobs.config import config_tree, decode_config, load_config
from mixlab.jobs.court import cases, session, trial
from mixlab.jobs.court.preferences import loss_backend, prefer_kernels
from mixlab.jobs.court.session import hold_court, kernels_of_run
from mixlab.jobs.court.trial import try_candidates
from mixlab.jobs.court.verdicts import Candidate, Verdict, Verdicts
from mixlab.jobs.device import Hardware
from mixlab.nn.language_model import build_model

CPU = torch.device("cpu")
BLOCKS = """
linear:
  sequence_mixer: {kind: gated_deltanet, n_heads: 2, head_dim: 8, allow_neg_eigval: true}
  channel_mixer: {kind: mlp, d_ff: 24}
full:
  sequence_mixer: {kind: attention, n_heads: 4, n_kv_heads: 2, head_dim: 8, window: 5}
  channel_mixer: {kind: mlp, d_ff: 24}
latent:
  sequence_mixer: {kind: mla, n_heads: 2, kv_lora_rank: 8, qk_nope_head_dim: 4,
                   qk_rope_head_dim: 4, v_head_dim: 6}
  channel_mixer: {kind: moe, n_experts: 4, n_active_experts: 2, d_expert: 8}
"""


@pytest.fixture
def config(tiny_recipe, tmp_path):
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text(BLOCKS)
    tree = config_tree(load_config(str(tiny_recipe)))
    tree["model"] |= {"blocks": read_yaml(blocks), "n_layers": 4}
    tree["model"]["pattern"] = ["linear", "full", "latent", "linear"]
    return decode_config(tree)


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """As if every op had a kernel here: plain PyTorch stands in for it."""
    run = {
        "causal_conv": lambda *a, **k: ["triton", "shift"],
        "gated_delta_rule": lambda *a, **k: ["fla", "chunked"],
        "attention": lambda *a, **k: ["flash", "sdpa"],
        "cross_entropy": lambda *a, **k: ["fused", "chunked"],
    }
    for op, usable in run.items():
        monkeypatch.setattr(f"mixlab.ops.{op}.usable_backends", usable)


def test_a_cpu_has_nothing_to_decide(config, monkeypatch):
    monkeypatch.setattr(session, "try_candidates", None)
    for precision in ("fp32", "bf16"):
        assert not hold_court(config, Hardware(CPU, precision), Quiet())


def test_every_use_of_an_op_is_one_case(config, kernels_everywhere):
    found = cases.cases_of(config, Hardware(CPU, "bf16"))
    assert [case.op for case in found] == [
        "causal_conv", "gated_delta_rule", "attention", "attention", "cross_entropy",
    ]  # fmt: skip
    assert {(c.dtype, c.n_rows, c.n_tokens) for c in found} == {(torch.bfloat16, 4, 16)}
    named = override(
        config_tree(config),
        ["model.blocks.linear.sequence_mixer.backend=chunked",
         "model.blocks.full.sequence_mixer.backend=reference",
         "model.blocks.latent.sequence_mixer.backend=sdpa", "train.micro_batch_size=2"],
    )  # fmt: skip
    found = cases.cases_of(decode_config(named), Hardware(CPU, "bf16"))
    assert [case.op for case in found] == ["causal_conv", "cross_entropy"]
    assert {c.n_rows for c in found} == {2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plain_pytorch_agrees_with_the_definitions(config, kernels_everywhere, precision):
    """Every case can be made and run; the kernels are missing here, and that is told."""
    for case in cases.cases_of(config, Hardware(CPU, precision)):
        verdict = try_candidates(case, CPU)
        *kernels, plain = verdict.candidates
        assert verdict.chosen == plain.name and plain.agrees, verdict
        assert all("the device is 'cpu'" in kernel.note for kernel in kernels)
        assert 0 <= plain.error < trial.ALLOWED[case.dtype] / 2


def test_experts_are_tried_on_a_gpu_only(config):
    assert not cases.cases_of(config, Hardware(CPU, "bf16"))
    mixer = config.model.blocks["latent"].channel_mixer
    case = cases._experts_case(mixer, 16, (torch.bfloat16, 4, 16), CPU)
    assert case.candidates == ("grouped",)
    verdict = try_candidates(replace(case, candidates=("grouped", "loop")), CPU)
    assert verdict.chosen == "grouped" and verdict.candidates[0].error < trial.ALLOWED[case.dtype]


def choose(monkeypatch, **chosen):
    """Trials that are over at once; how many there were."""
    held = []

    def tried(case, device, **options):
        held.append(case.op)
        name = chosen.get(case.op, case.candidates[0])
        return Verdict(
            case.op, dict(case.dims), "bfloat16", case.n_rows, case.n_tokens, name,
            tuple(Candidate(c, True, 1e-3, 1.0) for c in case.candidates),
        )  # fmt: skip

    monkeypatch.setattr(session, "try_candidates", tried)
    return held


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXLAB_CACHE", str(tmp_path / "cache"))
    return RunDir.create(tmp_path / "run")


def test_verdicts_are_kept_cached_and_used(config, kernels_everywhere, monkeypatch, run):
    held = choose(monkeypatch, gated_delta_rule="chunked", attention="sdpa")
    hardware = Hardware(CPU, "bf16")
    first = kernels_of_run(run, config, hardware, Quiet())
    assert len(held) == 5 and run.read_json("kernels.json") == first.document()
    assert kernels_of_run(run, config, hardware, Quiet()).document() == first.document()
    other = RunDir.create(run.path.parent / "other")
    assert kernels_of_run(other, config, hardware, Quiet()).document() == first.document()
    assert len(held) == 5, "the second run finds the first one's verdicts"
    hold_court(config, Hardware(CPU, "fp32"), Quiet())
    assert len(held) == 9, "float32 leaves the delta rule to plain PyTorch, and is tried anew"

    model = build_model(config.model, 0)
    prefer_kernels(model, first)
    linear, full, latent = (model.blocks[i].sequence_mixer for i in (0, 1, 2))
    assert linear.preferred == ("chunked",) and linear.conv1d.preferred == ("triton",)
    assert full.preferred == latent.preferred == ("sdpa",)
    assert loss_backend(config, first) == "fused" and loss_backend(config, Verdicts()) == "auto"
    assert "linear: gated_deltanet by chunked" in backends(config, hardware._replace(kernels=first))
    assert "gated_delta_rule (n_heads 2" in first[1].line() and "1.00 ms" in first[1].line()


def test_a_run_goes_on_with_what_it_began_with_or_not_at_all(
    config, kernels_everywhere, monkeypatch, run
):
    choose(monkeypatch)
    hardware = Hardware(CPU, "bf16")
    kernels_of_run(run, config, hardware, Quiet())
    monkeypatch.setattr("mixlab.ops.gated_delta_rule.usable_backends", lambda *a, **k: ["chunked"])
    with pytest.raises(BackendError, match="began with backend 'fla' of gated_delta_rule"):
        kernels_of_run(run, config, hardware, Quiet())
    (run.path / "kernels.json").unlink()
    assert len(kernels_of_run(run, config, hardware, Quiet())) == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1, "verdicts": [{}]}'])
def test_a_damaged_file_is_named(config, run, text):
    (run.path / "kernels.json").write_text(text)
    with pytest.raises(RunError, match=r"kernels\.json"):
        kernels_of_run(run, config, Hardware(CPU, "fp32"), Quiet())


def test_a_damaged_cache_is_made_anew(config, kernels_everywhere, monkeypatch, run, tmp_path):
    held = choose(monkeypatch)
    hold_court(config, Hardware(CPU, "bf16"), Quiet())
    for file in (tmp_path / "cache" / "kernels").iterdir():
        file.write_text("no JSON")
    hold_court(config, Hardware(CPU, "bf16"), Quiet())
    assert len(held) == 10


def test_training_keeps_the_verdicts_and_counts_the_same(
    train_tiny, resume, uninterrupted, monkeypatch, lab
):
    """Named plain backends compute what `auto` does on a CPU; nothing random is disturbed."""
    usable = {"attention": ["sdpa", "reference"], "cross_entropy": ["chunked", "reference"]}
    for op, names in usable.items():
        monkeypatch.setattr(f"mixlab.ops.{op}.usable_backends", lambda *a, n=names, **k: n)
    train_tiny(*NOISY, screen=Signalling(7, signal.SIGINT))
    run = RunDir.open(lab / "run")
    kept = run.read_json("kernels.json")
    assert [v["chosen"] for v in kept["verdicts"]] == ["sdpa", "chunked"]
    resume(run.path)
    assert run.read_json("kernels.json") == kept
    (run.path / "kernels.json").unlink()
    assert_same_run(run.path, uninterrupted)
