"""The report of a study: true to planted facts, self-contained, repeatable, whole in any state."""

import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from synthetic_studies import HYBRIDS, write_study

from mixlab.core.errors import RunError
from mixlab.report.study import pictures, write_study_report
from mixlab.report.study.analysis import analyse
from mixlab.report.study.charts import Dot, Line
from mixlab.report.study.drawings import Brush
from mixlab.report.study.folder import read_study
from mixlab.report.study.palette import DARK, LIGHT, N_COLOURS, look
from mixlab.report.study.rate_drawings import rate_panels
from mixlab.report.study.view import View

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Text, links and ids of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.hrefs, self.ids, self.words, self.sources = [], [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.hrefs += [attrs["href"]] if attrs.get("href") else []
        self.ids += [attrs["id"]] if attrs.get("id") else []
        self.sources += [attrs[k] for k in ("src", "xlink:href", "data", "srcset") if k in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Write a synthetic study and its report: (page, JSON, folder); pictures take too long."""
    monkeypatch.setattr(pictures, "write_pictures", lambda view, folder: [])

    def make(effects, name="study", **settings):
        folder = tmp_path / name
        folder.mkdir()
        write_study(folder, effects, **settings)
        page = Page(write_study_report(folder).read_text("utf-8"))
        return page, json.loads((folder / "report.json").read_text()), folder

    return make


# --- the answer ---------------------------------------------------------------------------------


def test_a_planted_difference_is_the_headline(report):
    page, record, _ = report({"plain": 0.0, "good": -0.2}, seeds=(1, 2, 3, 4), tuned=False)
    found = re.search(r"plain is worse than good by (0\.\d+) nats \(", page.text)
    assert float(found[1]) == pytest.approx(0.2, abs=0.05)  # the noise of a run is 0.012
    assert [row["arm"] for row in record["leaderboard"]] == ["good", "plain"]
    assert [row["rank"] for row in record["leaderboard"]] == [1, 2]


def test_equal_arms_are_one_tie_group_and_share_a_rank(report):
    effects = {f"arm-{i}": 0.0 for i in range(6)}
    page, record, _ = report(effects, seeds=(1, 2, 3, 4, 5), tuned=False)
    assert "None of the 6 arms differs from another by more than noise" in page.text
    assert {row["rank"] for row in record["leaderboard"]} == {1}
    assert {row["tie_groups"] for row in record["leaderboard"]} == {"a"}


def test_noise_floor_and_seeds_needed_are_told(report):
    page, record, _ = report({"a": 0.0, "b": 0.0, "c": 0.0}, tuned=False, effect=0.01)
    values = record["leaderboard"]
    base = next(row for row in values if row["arm"] == "a")["summary"]["values"]
    sd = np.std(list(base.values()), ddof=1)
    assert record["noise"]["base"]["sd"] == pytest.approx(sd)
    assert [row["effect"] for row in record["noise"]["seeds_needed"]] == [0.01]
    assert "Noise: the seed alone moves the validation loss of a" in page.text
    assert "Seeds needed for a difference of 0.01 nats" in page.text


def test_an_optimum_at_the_edge_is_not_ranked(report):
    page, record, _ = report({"a": 0.0, "b": -0.3}, edge=("b",))
    row = next(row for row in record["leaderboard"] if row["arm"] == "b")
    assert row["rank"] is None
    assert "Not ranked: b (its best learning rate is the largest that was tried)" in page.text


def test_one_seed_ranks_nothing(report):
    page, record, _ = report({"a": 0.0, "b": -0.3}, seeds=(1,), tuned=False)
    assert [row["rank"] for row in record["leaderboard"]] == [None, None]
    assert "Nothing can be ranked: there is one seed per arm" in page.text


def test_shares_are_percent_and_higher_is_better(report):
    effects = {"a": -3.5, "b": -3.1}  # 50 % and 90 % right
    page, record, _ = report(effects, metric="validation.accuracy", tuned=False)
    assert record["leaderboard"][0]["arm"] == "b"
    found = re.search(r"a is worse than b by (\d+) points", page.text)
    assert float(found[1]) == pytest.approx(40, abs=5)


# --- any state ----------------------------------------------------------------------------------


def test_an_unfinished_study_says_how_far_it_is(report):
    page, _, _ = report({"a": 0.0, "b": 0.1, "c": 0.2}, done=0.5, tuned=False)
    assert "Unfinished: 4 of 9 runs are done" in page.text


def test_a_study_without_any_run_has_a_report(report):
    page, record, _ = report({"a": 0.0, "b": 0.1}, done=0.0, tuned=False)
    assert "No run of the comparison has finished yet" in page.text
    assert record["leaderboard"][0]["summary"] is None


def test_failed_runs_are_shown_with_their_error(report):
    page, record, _ = report(
        {"a": 0.0, "b": 0.1}, failed={"b/2": "out of memory: 3 GiB wanted, 1 GiB free"}
    )
    assert "3 GiB wanted, 1 GiB free" in page.text and "out of memory" in page.text
    assert [(row["arm"], row["seed"]) for row in record["failed"]] == [("b", 2)]


def test_a_lost_curve_is_told_and_not_fatal(tmp_path):
    write_study(tmp_path, {"a": 0.0, "b": 0.1}, tuned=False)
    evals = next(tmp_path.glob("jobs/*/done/run/evals.jsonl"))
    evals.write_text("{broken\n")
    page = Page(write_study_report(tmp_path).read_text("utf-8"))
    assert "Could not be read" in page.text and evals.name in page.text


def test_no_study_no_report(tmp_path):
    with pytest.raises(RunError, match=r"holds no results\.json"):
        write_study_report(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        write_study_report(tmp_path / "none")


# --- the page -----------------------------------------------------------------------------------


def test_the_same_results_give_the_same_bytes(tmp_path):
    written = []
    for place in ("x", "y"):
        folder = tmp_path / place / "study"
        folder.mkdir(parents=True)
        write_study(folder, {"a": 0.0, "b": 0.1, "c": 0.1})
        write_study_report(folder)
        files = [folder / "report.html", folder / "report.json", *sorted(folder.glob("plots/*"))]
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {"curves.png", "seeds.png", "rates.png", "differences.png"} <= set(written[0])


def test_the_page_needs_nothing_from_outside(report):
    page, _, folder = report({"a": 0.0, "b": 0.1})
    text = (folder / "report.html").read_text("utf-8")
    assert page.sources == [] and "<script" not in text and "@import" not in text
    assert set(re.findall(r"url\((.*?)\)", text)) <= {f"#{i}" for i in page.ids}
    assert not any(re.match(r"[a-z]+:|//", href) for href in page.hrefs)


def test_every_run_is_linked_and_every_link_leads_somewhere(report):
    page, _, folder = report({"a": 0.0, "b": 0.1}, seeds=(1, 2))
    (folder / "study.yaml").write_text("")
    (folder / "plots").mkdir()
    for href in page.hrefs:
        if href.startswith("#"):
            assert href[1:] in page.ids, href
        else:
            target = folder / unquote(href)
            assert target.exists() or "/t0" in href, href  # tuning runs have no folder here
    runs = {path.parent for path in folder.glob("jobs/*/done/run/evals.jsonl")}
    linked = {folder / Path(unquote(href)) for href in page.hrefs if not href.startswith("#")}
    assert len(runs) == 4 and runs <= linked


def test_names_and_texts_are_not_markup(report):
    name = "<b>&'\"x</b>"
    page, _, folder = report(
        {name: 0.0, "b": 0.1}, tuned=False, about="<script>alert(1)</script> & more"
    )
    assert "<script>" not in (folder / "report.html").read_text("utf-8")
    assert name in page.text and "<script>alert(1)</script> & more" in page.text


def test_thirty_arms(report):
    effects = {f"variant-{i:02d}": 0.01 * i for i in range(30)}
    page, record, _ = report(effects, seeds=(1, 2))
    assert len(record["leaderboard"]) == 30
    assert all(f"variant-{i:02d}" in page.text for i in range(30))


def test_the_checklist_is_filled_in(report):
    page, _, _ = report(HYBRIDS, seeds=(1, 2), base="attention-17", tuned=False)
    for item in ("500b405c98d10a35d66d51a76392c84f", "AMD EPYC, 2 cores", "efdcb533da45",
                 "train 24.0M tokens", "2.1 % of the validation text", "Holm", "compared by hash",
                 "(base - arm) / base"):  # fmt: skip
        assert item in page.text, item
    assert "not recorded" not in page.text


def shared_machine(folder, factors):
    """Let every run take as many times as long as `factors` say, in turn."""
    tree = json.loads((folder / "results.json").read_text())
    for i, job in enumerate(tree["jobs"].values()):
        job["seconds"] = 300.0 * factors[i % len(factors)]
        job["decode_ms"] = 2.0
    (folder / "results.json").write_text(json.dumps(tree))


def test_times_of_a_shared_machine_are_not_compared(report):
    effects = {"a": 0.0, "b": 0.1, "c": 0.1}
    page, record, folder = report(effects, tuned=False)
    assert "against training time" in page.text and "Equal runs" not in page.text
    assert {front["cost"] for front in record["fronts"]} >= {"flops", "seconds"}

    shared_machine(folder, (1.0, 1.1, 4.0))
    page = Page(write_study_report(folder).read_text("utf-8"))
    record = json.loads((folder / "report.json").read_text())
    assert "differ in training time by a factor of up to 4.0: they shared" in page.text
    assert "against training time" not in page.text and "tokens, FLOPs and seconds" not in page.text
    assert "seconds" not in {front["cost"] for front in record["fronts"]}
    assert record["uneven_times"] == {"seconds": 4.0}

    shared_machine(folder, (1.0, 1.1, 1.2))  # as two runs on one quiet machine differ
    page = Page(write_study_report(folder).read_text("utf-8"))
    assert "against training time" in page.text and "Equal runs" not in page.text


def test_unequal_compute_is_told(report):
    page, _, _ = report({"a": 0.0, "b": 0.1, "c": 0.1}, tuned=False)  # each arm 6 % above the last
    assert "Training FLOPs were not made equal: c spent 12.0 % more than a" in page.text


def test_ticks_that_lie_close_are_told_apart(report):
    page, _, _ = report({"a": 0.0, "b": 0.1}, tuned=False)  # FLOPs from 1.4e15 to 1.484e15
    ticks = re.findall(r"\d(?:\.\d+)?e15(?=\D)", "".join(f" {word} " for word in page.words))
    assert {"1.4e15", "1.45e15"} <= set(ticks)


def test_how_much_of_the_text_a_run_sees(report):
    page, _, _ = report({"a": 0.0, "b": 0.1}, tuned=False)
    assert "83.3 % of the training text, none of it twice" in page.text  # 20M of 24M
    assert "1.7 tokens per parameter" in page.text  # 20M for 12.0M


def test_a_rate_far_off_stands_at_the_rim_with_its_line(tmp_path):
    write_study(tmp_path, {"a": 0.0, "b": 0.0}, seeds=(1, 2))
    tree = json.loads((tmp_path / "results.json").read_text())
    tree["jobs"]["t000"]["value"] = tree["jobs"]["t000"]["final"]["loss_nats"] = 40.0
    (tmp_path / "results.json").write_text(json.dumps(tree))
    view = View(analyse(read_study(tmp_path), tmp_path))
    charts = rate_panels(Brush(view.analysis, view.metric, view.looks, view.href))
    line = next(mark for mark in charts[0].marks if isinstance(mark, Line))
    dots = [mark for mark in charts[0].marks if isinstance(mark, Dot)]
    assert list(line.y) == [dot.y for dot in dots]
    assert max(line.y) == charts[0].y.limits[1] < 5
    assert charts[0].x.limits == charts[1].x.limits


def test_a_grid_over_rates_has_a_curve_for_every_setting(report):
    losses = {"wide,lr=0.001": 0.3, "wide,lr=0.002": 0.0, "wide,lr=0.004": 0.2,
              "deep,lr=0.001": 0.3, "deep,lr=0.002": 0.1, "deep,lr=0.004": 0.1}  # fmt: skip
    changes = {
        name: {"model.pattern": [name[:4]], "train.optimizer.lr": float(name[8:])}
        for name in losses
    }
    page, _, _ = report(losses, tuned=False, changes=changes, noise=0.001)
    _, _, rows = page.text.partition("rates that cannot be told from it")
    wide = re.search(r"wide\s*2e-3\s*4\.0\d+\s*none", rows)
    deep = re.search(r"deep\s*(2e-3|4e-3 \(edge of the grid\))\s*4\.1\d+\s*(4e-3|2e-3)", rows)
    assert wide and deep, rows[:200]
    assert "rates-1" in " ".join(page.ids) and "rates-2" not in " ".join(page.ids)


def test_arms_with_rates_of_their_own_are_no_grid(report):
    changes = {"a": {"train.optimizer.lr": 1e-3}, "b": {"train.optimizer.lr": 2e-3, "seq": 1}}
    page, _, _ = report({"a": 0.0, "b": 0.1}, tuned=False, changes=changes)
    assert "at every rate of the grid" not in page.text


# --- colours ------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes, IEEE TVCG 15(6), 2009: severe deuteranomaly, protanomaly and
# tritanomaly, in linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.01182, 0.04294, 0.968881]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    c = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    t = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a, b):
    dark, light = sorted(float(TO_XYZ[1] @ linear(c)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_colours_stay_apart_for_every_eye(theme, sight):
    seen = [lab(np.array(SIGHT[sight]) @ linear(theme[f"c{i}"])) for i in range(N_COLOURS)]
    # A difference of 2 can be seen side by side; ten times that is plain on separate lines.
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 20


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(theme):
    for name in ("ink", "faint", "link", "good", "bad"):
        assert contrast(theme[name], theme["paper"]) > 4.5, name  # WCAG 2, AA, for text
    for i in range(N_COLOURS):
        assert contrast(theme[f"c{i}"], theme["paper"]) > 2.8, i


def test_every_arm_of_a_large_study_looks_different():
    looks = {look(i)[1:] for i in range(35)}
    assert len(looks) == 35
