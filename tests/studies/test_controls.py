"""Controls hold what they say they hold, by the formulas that other tests hold to the modules."""

import pytest
from stub_runs import LOOPED, config

from mixlab.core.config import diff, to_tree
from mixlab.core.recipes import list_recipes
from mixlab.jobs.config import RefineRunConfig, load_config
from mixlab.nn.recursion.refiner import build_refiner
from mixlab.studies import side_by_side
from mixlab.studies.controls import controls_of, is_recursive
from mixlab.studies.sizes import budget_of

RECURSIVE = ["moe-recursive", "moe-recursive-11", "looped-lm", "sudoku-4x4", "trm-sudoku"]


def controls(cfg):
    return {control.kind.key: control for control in controls_of(cfg)}


def test_recursive_recipes_are_known():
    found = {name for name, _ in list_recipes() if is_recursive(load_config(name))}
    assert set(RECURSIVE) <= found and not {"moe", "quickstart", "gdn-small"} & found


@pytest.mark.parametrize("recipe", RECURSIVE)
def test_quantities_are_matched_within_one_percent(recipe):
    cfg = load_config(recipe)
    own, made = budget_of(cfg), controls(cfg)
    plain, deep = budget_of(made["same-params"].config), budget_of(made["same-flops"].config)
    assert plain.n_params == pytest.approx(own.n_params, rel=0.01)
    assert deep.train_flops_per_token == pytest.approx(own.train_flops_per_token, rel=0.01)
    assert deep.n_params > own.n_params
    for control in made.values():
        if control.config is None:
            assert "halting" in control.reason
            continue
        assert is_recursive(control.config) == (control.kind.key == "fixed-steps")
        assert control.config.tokens_per_step == cfg.tokens_per_step


@pytest.mark.parametrize("recipe", ["moe-recursive", "sudoku-4x4"])
def test_only_the_recursion_changes_in_the_plain_control(recipe):
    cfg = load_config(recipe)
    changed = diff(to_tree(cfg), to_tree(controls(cfg)["same-params"].config))
    keys = {key for key in changed if key not in ("name", "about")}
    assert all(
        key.startswith(("model.recursion", "model.halting"))
        or key in ("model.H_cycles", "model.L_cycles", "model.state_init")
        for key in keys
    )


def test_the_plain_control_of_moe_recursive_is_moe():
    plain = to_tree(controls(load_config("moe-recursive"))["same-params"].config)
    assert set(diff(plain, to_tree(load_config("moe")))) == {"name", "about"}


def test_the_core_is_repeated_with_its_own_pattern():
    cfg = load_config("hybrid-alternating", [
        "model.recursion={kind: looped, prelude_layers: 2, core_layers: 2, coda_layers: 4, "
        "depth: {kind: fixed, steps: 3}}"
    ])  # fmt: skip
    layers = cfg.model.layers()
    deep = controls(cfg)["same-flops"].config.model.layers()
    assert deep[:2] == layers[:2] and deep[-4:] == layers[-4:]
    core = deep[2:-4]
    assert core == [layers[2:4][i % 2] for i in range(len(core))] and len(core) >= 4


def test_fixed_steps_replace_a_learned_gate_only():
    made = controls(config(*LOOPED))["fixed-steps"].config.model.recursion
    assert made.halting.kind == "fixed" and made.depth.kind == "fixed"
    assert made.depth.steps == 2  # the mean of 1, 2 and 3
    none = controls(load_config("looped-lm"))["fixed-steps"]
    assert none.config is None and "kl_exit" in none.reason


@pytest.mark.parametrize("overrides", [[], ["model.H_layers=2"]])
def test_the_single_pass_of_a_refiner_reads_the_question(overrides):
    import torch

    cfg = load_config("sudoku-4x4", overrides)
    single = controls(cfg)["same-params"].config
    assert isinstance(single, RefineRunConfig)
    model = build_refiner(single.model, 1)
    asked = torch.randint(0, 6, (2, 16), generator=torch.Generator().manual_seed(0))

    def logits(inputs):
        return model(model.initial_state(inputs), inputs).logits

    assert (logits(asked) - logits((asked + 1) % 6)).abs().max() > 1e-3
    logits(asked).sum().backward()
    assert all(p.grad is not None for p in model.L_net.parameters())


@pytest.mark.parametrize("slow_machine", [1.0, 5.0])
def test_a_mean_update_is_that_of_all_depths(monkeypatch, slow_machine):
    """A clock that only the updates move: one of depth d takes d seconds, a plain one takes 2."""
    now = [0.0]

    def stepper(cfg):
        recursion = cfg.model.recursion

        def step(position):
            spent = recursion.depth.draw(cfg.seed, position) if recursion else 2.0
            now[0] += spent * slow_machine

        return step

    monkeypatch.setattr(side_by_side, "_stepper", stepper)
    monkeypatch.setattr(side_by_side.time, "process_time", lambda: now[0])
    deep = config(*LOOPED, "model.recursion.depth.halt_max_steps=12")
    timed = side_by_side.time_side_by_side(deep, config())
    assert timed.first == pytest.approx(6.5 * slow_machine)  # the mean of 1 to 12
    assert timed.second == pytest.approx(2.0 * slow_machine)


@pytest.mark.slow
def test_a_real_update_takes_time(lab, tiny_corpus):
    plain = config(f"data.corpus.path={tiny_corpus}", "data.split.min_validation_tokens=256")
    timed = side_by_side.time_side_by_side(plain, plain)
    assert timed.first > 0 and timed.second > 0
