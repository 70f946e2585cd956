import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixlab.core.run_dir import RunDir
from mixlab.report.plots import Context, context_lines, png, training_curves, write_training_curves
from mixlab.report.series import Series, column, envelope, series, smooth, thin, where

_CONTEXT = [Context("ln V (uniform guess)", 8.3), Context("unigram entropy", 5.9)]


def _rows(n: int) -> dict:
    step = np.arange(1, n + 1)
    loss = 4.3 + 4 * np.exp(-step / (n / 7 or 1)) + np.random.default_rng(0).normal(0, 0.1, n)
    return {"step": step.tolist(), "tokens": (step * 4096).tolist(), "loss_nats": loss.tolist()}


def _evals(losses: list, weights: str = "raw", steps_apart: int = 100) -> dict:
    n = len(losses)
    steps = [i * steps_apart for i in range(n)]
    return {
        "step": steps,
        "tokens": [s * 4096 for s in steps],
        "split": ["validation"] * n,
        "weights": [weights] * n,
        "loss_nats": losses,
        "accuracy": [None if x is None else math.exp(-x / 2) for x in losses],
        "perplexity": [None if x is None else math.exp(x) for x in losses],
    }


def _texts(figure) -> str:
    return "\n".join(
        text.get_text() for ax in figure.axes for text in [*ax.texts, ax.title, ax._right_title]
    )


# --- series


def test_smoothing_keeps_a_straight_line_and_ends_with_a_mean():
    x = np.arange(50.0)
    line = smooth(Series(x, 3 - 0.1 * x), half_width=7)
    # A symmetric window is exact on a straight line; the last 7 have only their left half.
    np.testing.assert_allclose(line.y[:43], 3 - 0.1 * x[:43], atol=1e-12)  # rounding of cumsum
    assert line.y[-1] == pytest.approx(3 - 0.1 * (49 + 42) / 2)


def test_smoothing_leaves_out_what_is_not_finite():
    line = smooth(Series(np.arange(5.0), np.array([1.0, np.nan, 1.0, np.nan, 1.0])), 2)
    assert line.x.tolist() == [0, 2, 4] and line.y.tolist() == [1, 1, 1]


def test_series_takes_null_text_and_infinity_as_missing_and_sorts_by_x():
    rows = {"tokens": [3, 1, None, 2], "loss": [0.3, None, 9.0, math.inf]}
    line = series(rows, "tokens", "loss")
    assert line.x.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(line.y, [np.nan, np.nan, 0.3])
    assert np.isnan(column(rows, "absent")).all() and len(column(rows, "absent")) == 4
    assert len(series({}, "tokens", "loss").x) == 0


def test_where_keeps_matching_rows():
    rows = {"split": ["validation", "test"], "loss": [1, 2]}
    assert where(rows, split="test") == {"split": ["test"], "loss": [2]}
    assert where(rows, weights="raw") == {"split": [], "loss": []}


def test_thinning_keeps_both_ends_and_the_envelope_every_spike():
    line = Series(np.arange(10_000.0), np.zeros(10_000))
    line.y[[1234, 9999]] = 5.0, -5.0
    kept = thin(line, 100)
    assert len(kept.x) == 100 and kept.x[0] == 0 and kept.x[-1] == 9999
    _, low, high = envelope(line, 100)
    assert high.max() == 5 and low.min() == -5


# --- the picture


def test_picture_shows_final_values_and_context_lines():
    figure = training_curves(
        _rows(400),
        _evals([8.3, 5.5, 4.8, 4.5, 4.44]),
        title="quickstart",
        n_params=1_020_000,
        context=_CONTEXT,
    )
    texts = _texts(figure)
    assert "4.44" in texts and "10.9 %" in texts and "84.8" in texts
    assert "ln V (uniform guess) 8.30" in texts and "unigram entropy 5.90" in texts
    assert [t.get_text() for t in figure.texts][-1] == "1.02M parameters,  1.64M tokens,  400 steps"
    assert figure.axes[3].get_yscale() == "log"


def test_a_context_line_far_off_is_told_and_does_not_squash_the_curve():
    figure = training_curves({}, _evals([4.5, 4.45, 4.4]), title="t", context=_CONTEXT)
    ax = figure.axes[1]
    assert ax.get_ylim()[1] < 4.6
    assert "off scale: unigram entropy 5.90, ln V 8.30" in ax._right_title.get_text()


def test_averaged_weights_are_a_second_line():
    raw, ema = _evals([8.3, 5.0]), _evals([8.3, 4.9], "ema")
    both = {name: raw[name] + ema[name] for name in raw}
    assert "4.90 EMA" in _texts(training_curves({}, both, title="t"))


@pytest.mark.parametrize(
    ("n", "losses"),
    [(0, []), (0, [8.0]), (1, []), (1, [None]), (2, [8.0, None]), (2, [5.0, 5.0]), (3, [0.0, 700])],
)
@pytest.mark.filterwarnings("error")
def test_any_short_run_can_be_drawn(n: int, losses: list):
    metrics = _rows(n) if n else {}
    evals = _evals(losses) if losses else {}
    data = png(training_curves(metrics, evals, title="t", context=_CONTEXT))
    assert data.startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
def test_a_run_that_diverged_says_where():
    rows = _rows(100)
    rows["loss_nats"][60:] = [None] * 40
    figure = training_curves(rows, _evals([8.0, None]), title="cost $x_2$ \u5b57")
    assert _texts(figure).count("not finite") == 4
    assert figure.axes[0].get_xlim()[1] == 100 * 4096


def test_no_finite_loss_at_all():
    rows = {"step": [1, 2], "tokens": [10, 20], "loss_nats": [None, None]}
    assert "no finite loss" in _texts(training_curves(rows, {}, title="t"))


def test_a_million_steps_are_thinned():
    n = 10**6
    step = np.arange(1, n + 1)
    rows = {"step": step.tolist(), "tokens": step.tolist(), "loss_nats": (1 / step).tolist()}
    figure = training_curves(rows, {}, title="t")
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) <= 2000


def test_equal_numbers_give_equal_bytes_and_no_display_is_needed(tmp_path: Path):
    run = RunDir.create(tmp_path / "run")
    for step in range(1, 20):
        run.append("metrics.jsonl", {"step": step, "tokens": step * 10, "loss_nats": 1.0 / step})
    first = write_training_curves(run).read_bytes()
    code = (
        "import sys; from mixlab.core.run_dir import RunDir\n"
        "from mixlab.report.plots import write_training_curves\n"
        "write_training_curves(RunDir(sys.argv[1]))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    assert run.curves_path.read_bytes() == first


def test_context_lines_come_from_the_summary():
    known = {"context": {"ln_vocab_nats": 8.3, "unigram_entropy_nats": None, "other": 1}}
    assert context_lines(known) == [Context("ln V (uniform guess)", 8.3)]
    assert context_lines({}) == []
