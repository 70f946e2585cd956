import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixlab.core.run_dir import RunDir
from mixlab.report.expert_loads import expert_loads, moe_layers
from mixlab.report.experts import color_limit, experts_path, experts_picture, write_experts_picture
from mixlab.report.markdown import write_report
from mixlab.report.panel import png


def _metrics(n_rows: int, n_experts: int, n_layers: int = 1) -> dict[str, list]:
    """Columns of a run in which expert 0 dies half-way."""
    steps = list(range(1, n_rows + 1))
    found: dict[str, list] = {"step": steps, "tokens": [100 * step for step in steps]}
    alive = [1 / n_experts] * n_experts
    dead = [0.0] + [1 / (n_experts - 1)] * (n_experts - 1) if n_experts > 1 else [1.0]
    for i in range(n_layers):
        name = f"layers.layer_{i:02d}"
        found[f"{name}.expert_utilization"] = [alive if 2 * s <= n_rows else dead for s in steps]
        found[f"{name}.routing_entropy_frac"] = [0.5] * n_rows
        found[f"{name}.max_load"] = [1.0] * n_rows
    return found


def _heat_maps(figure) -> list[np.ma.MaskedArray]:
    """Cells (experts, time) of every heat map."""
    return [ax.images[0].get_array() for ax in figure.axes if ax.images and ax.get_title("left")]


def _texts(figure) -> str:
    return "\n".join(
        text.get_text()
        for ax in figure.axes
        for text in [*ax.texts, ax.title, ax._left_title, ax._right_title]
    )


# --- loads


def test_loads_are_shares_over_the_even_share():
    loads = expert_loads(_metrics(10, 4), "layer_00", n_bins=10)
    np.testing.assert_allclose(loads.load[0], 1)
    np.testing.assert_allclose(loads.load[-1], [0, 4 / 3, 4 / 3, 4 / 3])
    assert loads.edges.tolist() == list(range(0, 1001, 100))


def test_bins_are_means_and_the_end_alone_can_be_asked_for():
    metrics = _metrics(10, 4)
    loads = expert_loads(metrics, "layer_00", n_bins=2)
    assert loads.edges.tolist() == [0, 500, 1000] and loads.load[:, 0].tolist() == [1, 0]
    assert expert_loads(metrics, "layer_00", 1, last=10).load[0, 0] == pytest.approx(0.5)
    assert expert_loads(metrics, "layer_00", 1, last=3).edges.tolist() == [700, 1000]


def test_what_is_missing_is_missing_and_not_zero():
    metrics = _metrics(4, 4)
    shares = metrics["layers.layer_00.expert_utilization"]
    shares[0], shares[1] = None, [0.5, 0.5]  # a row without, and one of another size
    shares[2] = [0.25, None, 0.25, math.nan]
    metrics["tokens"][3] = None
    loads = expert_loads(metrics, "layer_00", n_bins=9)
    np.testing.assert_array_equal(loads.load[2], [1, np.nan, 1, np.nan])
    assert np.isnan(loads.load[:2]).all() and len(loads.load) == 3
    assert expert_loads({"tokens": [1]}, "layer_00", 9) is None
    assert moe_layers({"layers.layer_03.max_load": [1], "loss_nats": [1]}) == []


# --- the picture


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("n_rows", "n_experts", "n_layers"), [(1, 4, 1), (2, 1, 1), (30, 64, 24), (300, 7, 5)]
)
def test_any_shape_can_be_drawn(n_rows: int, n_experts: int, n_layers: int):
    figure = experts_picture(_metrics(n_rows, n_experts, n_layers), title="cost $x_2$")
    maps = _heat_maps(figure)
    assert len(maps) == n_layers
    assert maps[0].shape == (n_experts, min(n_rows, 240))
    assert f"layer {n_layers - 1:02d}" in _texts(figure)
    if n_layers < 24:
        assert png(figure).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_gaps_and_an_empty_run_can_be_drawn():
    metrics = _metrics(6, 4, 2)
    metrics["layers.layer_00.expert_utilization"] = [None] * 6
    metrics["layers.layer_01.expert_utilization"][2] = None
    del metrics["layers.layer_01.max_load"]
    metrics["layers.layer_01.routing_entropy_frac"] = [None] * 6
    figure = experts_picture(metrics, title="t")
    (cells,) = _heat_maps(figure)
    assert np.ma.getmaskarray(cells)[:, 2].all() and not np.ma.getmaskarray(cells)[:, 1].any()
    assert _texts(figure).count("nothing recorded") == 2
    assert png(figure).startswith(b"\x89PNG")
    assert "no step recorded" in _texts(experts_picture({}, title="t"))


def test_no_token_has_a_colour_of_its_own():
    figure = experts_picture(_metrics(10, 4), title="t")
    image = next(ax.images[0] for ax in figure.axes if ax.get_title("left") == "layer 00")
    colors = image.cmap(image.norm(image.get_array()))
    assert colors[0, -1].tolist() == [0, 0, 0, 1]  # expert 0 at the end: black
    lowest = image.cmap(image.norm(image.norm.vmin * 1.0001))
    assert lowest[2] > 0.4  # the scale's own lower end is a clear blue
    assert colors[1, 0].min() > 0.9  # even is white


def test_the_scale_is_a_power_of_two_and_ignores_the_dead():
    assert color_limit(np.array([1.0, 1.01, 0.0])) == 2
    assert color_limit(np.array([0.3, 1.7])) == 4
    assert color_limit(np.array([1e-6, 64.0])) == 8
    assert color_limit(np.array([np.nan, 0.0])) == 2


def test_a_million_rows_are_decimated():
    n = 10**6
    shares = [0.25, 0.25, 0.3, 0.2]
    metrics = {
        "tokens": list(range(1, n + 1)), "layers.layer_00.expert_utilization": [shares] * n,
    }  # fmt: skip
    loads = expert_loads(metrics, "layer_00", 240)
    assert loads.load.shape == (240, 4) and loads.edges[-1] == n
    np.testing.assert_allclose(loads.load[:, 2], 1.2)


def test_a_run_without_experts_gets_no_picture_and_equal_rows_give_equal_bytes(tmp_path: Path):
    dense = RunDir.create(tmp_path / "dense")
    assert write_experts_picture(dense) is None  # no rows yet
    dense.append("metrics.jsonl", {"step": 1, "tokens": 10, "loss_nats": 1.0})
    assert write_experts_picture(dense) is None and not experts_path(dense).exists()
    run = RunDir.create(tmp_path / "run")
    for step in range(1, 9):
        layer = {"expert_utilization": [0.25, 0.75], "routing_entropy_frac": 0.9, "max_load": 1.5}
        run.append("metrics.jsonl", {"step": step, "tokens": step, "layers": {"layer_00": layer}})
    first = write_experts_picture(run).read_bytes()
    code = (
        "import sys; from mixlab.core.run_dir import RunDir\n"
        "from mixlab.report.experts import write_experts_picture\n"
        "write_experts_picture(RunDir(sys.argv[1]))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    assert experts_path(run).read_bytes() == first


# --- the report's section


def _section(run: RunDir) -> str:
    text = write_report(run).read_text()
    return text.partition("## Experts")[2].partition("\n## ")[0]


def test_section_of_a_run_that_is_still_training(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    for step in range(1, 41):
        layer = {
            "expert_utilization": [0.0, 0.6, 0.2, 0.2],
            "routing_entropy_frac": 0.5 + 0.01 * step,
            "max_load": 2.6,
        }
        run.append("metrics.jsonl", {"step": step, "tokens": step, "layers": {"layer_03": layer}})
    section = _section(run)
    # Mean entropy of steps 21 to 40: 0.5 + 0.01 * 30.5.
    row = "| layer 03 | 0.00 (expert 0) | 2.40 (expert 1) | 2.60 | 1 of 4 | 0.805 |"
    assert row in section and "last 20 steps" in section
    assert "is measured when a run ends" in section and "experts.png" not in section


def test_section_names_the_foremost_experts_of_a_class(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    figures = {"chance_bits": 0.01, "chance_high_bits": 0.02, "most_bits": 1.0}
    weak = {"n_active_experts": 1, "counts": [[10, 10], [50, 50]], "bits": 0.015, **figures}
    strong = {"n_active_experts": 1, "counts": [[1, 19], [60, 40]], "bits": 0.505, **figures}
    layers = {"layer_00": weak, "layer_01": strong | {"typical": [["a|b", "`"], ["\n", "7"]]}}
    facts = {"n_tokens": 120, "classes": ["number", "other"], "class_tokens": [20, 100]}
    run.write_json("experts.json", {**facts, "layers": layers})
    section = _section(run)
    assert "| layer 00 | 0.015 | 0.010 | 1.000 | 0.5 % | no |" in section
    assert "| layer 01 | 0.505 | 0.010 | 1.000 | 50.0 % | yes |" in section
    assert "Layer 01, where the class tells most" in section
    # Expert 1 takes 59 of all 120 tokens and 19 of the 20 numbers: 0.95 / 0.492 = 1.9.
    assert "| number | 20 | 1: 95.0 % (1.9 x), 0: 5.0 % (0.1 x) |" in section
    assert "`\\n` `7`" in section


def test_a_dense_run_has_no_section_and_a_damaged_file_is_told(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    assert _section(run) == ""
    run.write_text("experts.json", "{ torn")
    text = write_report(run).read_text()
    assert "## Experts" not in text and "experts.json is damaged" in text
