"""Claims: each verdict on studies with a planted truth, and files that are wrong."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "report"))
from synthetic_studies import HYBRIDS, write_study

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, LabError
from mixlab.report.study.folder import read_study
from mixlab.studies.catalogue import list_claims, list_studies
from mixlab.studies.claims.answer import answer_text, write_answer
from mixlab.studies.claims.claim_file import ClaimFile, load_claim, packaged_claims
from mixlab.studies.claims.verdict import judge

SEEDS = (1, 2, 3, 4, 5)  # noise of a run: 0.012 nats; of a mean difference: about 0.008


@pytest.fixture
def verdict(tmp_path):
    """Judge a claim on a synthetic study."""

    def run(effects, *, claim=None, study=None, **statements):
        write_study(tmp_path, effects, **{"seeds": SEEDS, "tuned": False, **(study or {})})
        tree = {"name": "c", "claim": "A sentence.", "study": "x", **(claim or {}), **statements}
        read = read_study(tmp_path)
        found = judge(decode(ClaimFile, tree), read)
        return found, answer_text(found, read)

    return run


BETTER = {"arm": "a", "better_than": "b", "by": 0.02}


@pytest.mark.parametrize(
    ("ahead", "word"), [(0.2, "supported"), (-0.2, "not supported"), (0.025, "undecided")]
)
def test_better_than(verdict, ahead, word):
    found, text = verdict({"a": -ahead, "b": 0.0}, all_of=[BETTER])
    assert found.verdict == word
    assert (word.upper() in text and "a ahead of b by" in text) or "a behind b by" in text


def test_a_real_difference_below_the_margin_is_not_enough(verdict):
    found, _ = verdict({"a": -0.05, "b": 0.0}, all_of=[{**BETTER, "by": 0.2}])
    assert found.verdict == "not supported"


@pytest.mark.parametrize(
    ("behind", "word"), [(0.0, "supported"), (0.3, "not supported"), (0.098, "undecided")]
)
def test_not_worse_than(verdict, behind, word):
    said = {"arm": "a", "not_worse_than": "b", "by": 0.1}
    assert verdict({"a": behind, "b": 0.0}, all_of=[said])[0].verdict == word


def test_some_differ(verdict):
    said = {"differ": ["a", "b", "c"], "by": 0.1}
    effects = {"a": 0.0, "b": 0.0, "c": 0.4}
    assert verdict(effects, all_of=[said])[0].verdict == "supported"


def test_none_differ_by_that_much(verdict):
    said = {"differ": ["a", "b", "c"], "by": 0.1}
    assert verdict({"a": 0.0, "b": 0.0, "c": 0.0}, all_of=[said])[0].verdict == "not supported"


def test_whether_any_differ_at_all_cannot_be_denied(verdict):
    said = {"differ": ["a", "b", "c"]}
    assert verdict({"a": 0.0, "b": 0.0, "c": 0.0}, all_of=[said])[0].verdict == "undecided"


def test_all_must_hold(verdict):
    said = [{"arm": "a", "better_than": ["b", "c"]}]
    assert verdict({"a": -0.2, "b": 0.0, "c": -0.5}, all_of=said)[0].verdict == "not supported"
    assert verdict({"a": -0.7, "b": 0.0, "c": -0.5}, all_of=said)[0].verdict == "supported"


def test_one_of_any_is_enough(verdict):
    said = [{"arm": "a", "better_than": "b"}, {"arm": "c", "better_than": "b"}]
    assert verdict({"a": 0.3, "b": 0.0, "c": -0.3}, any_of=said)[0].verdict == "supported"
    assert verdict({"a": 0.3, "b": 0.0, "c": 0.3}, any_of=said)[0].verdict == "not supported"


def test_a_quantity_is_judged_as_a_metric_is(verdict):
    # Each arm of a synthetic study takes 6 % longer than the one before it.
    effects = {"quick": 0.0, "slow": 0.0, "slower": 0.0, "slowest": 0.0, "last": 0.0}
    said = [{"arm": "quick", "better_than": "last"}]
    found, text = verdict(effects, claim={"metric": "seconds"}, all_of=said)
    assert found.verdict == "supported"
    assert "training time" in text


def test_higher_is_better_for_a_share(verdict):
    settings = {"metric": "validation.accuracy"}
    said = [{"arm": "a", "better_than": "b", "by": 0.1}]
    found, text = verdict({"a": -3.2, "b": -3.5}, study=settings, all_of=said)
    assert found.verdict == "supported"  # 80 % against 50 %
    assert "points" in text


# --- what stands in the way ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"is_smoke": True}, "smoke size"),
        ({"is_as_published": True}, "published design"),
        ({"seeds": (1,)}, "fewer than two seeds"),
        ({"tuned": True, "edge": ("a",)}, "not ranked"),
        ({"done": 0.5}, "no finished run"),
    ],
)
def test_undecided_with_its_reason(verdict, settings, reason):
    found, text = verdict({"a": -0.5, "b": 0.0}, study=settings, all_of=[BETTER])
    assert found.verdict == "undecided" and reason in text


def test_unequal_arms_answer_nothing(verdict):
    effects = {f"arm-{i}": 0.0 for i in range(20)} | {"a": -0.5, "b": 0.0}
    first = {"arm": "a", "better_than": "arm-0"}  # 12.18M against 12.00M parameters
    found, text = verdict(effects, claim={"equal": ["params"]}, all_of=[first])
    assert found.verdict == "undecided" and "params should be equal, but differs by 1.5 %" in text
    found, _ = verdict(effects, claim={"equal": ["params"]}, all_of=[BETTER])
    assert found.verdict == "supported"


def test_the_answer_is_kept_beside_the_study(tmp_path):
    write_study(tmp_path, HYBRIDS, seeds=SEEDS, tuned=False, base="attention-17")
    study = read_study(tmp_path)
    claim = load_claim("seventeen-percent-wins").file.model_copy(update={"equal": []})
    path = write_answer(judge(claim, study), study, tmp_path)
    assert path == tmp_path / "claims" / "seventeen-percent-wins.json"
    assert '"verdict": "supported"' in path.read_text()


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"all_of": []}, "at least one statement"),
        ({"all_of": [{"arm": "a"}]}, "exactly one of better_than"),
        ({"all_of": [{"better_than": "b"}]}, "an arm with better_than"),
        ({"all_of": [{"arm": "a", "not_worse_than": "b"}]}, "a margin above 0"),
        ({"all_of": [{"differ": ["a"]}]}, "at least two arms"),
        ({"all_of": [BETTER], "alpha": 2}, "less than 0.5"),
        ({"all_off": [BETTER]}, "Did you mean 'all_of'"),
    ],
)
def test_wrong_files_are_told(tree, said):
    with pytest.raises(ConfigError, match=said):
        decode(ClaimFile, {"name": "c", "claim": "x", "study": "hybrid-patterns", **tree})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("arm: atention-25", "Did you mean 'attention-25'"),
        ("metric: acuracy", "metric = 'acuracy': expected the metric of the study"),
        ("equal: [seconds]", "expected a quantity that the study hybrid-patterns holds equal"),
        ("study: hybrid-pattern", "Did you mean 'hybrid-patterns'"),
    ],
)
def test_claims_that_their_study_cannot_test(tmp_path, changes, said):
    key, _, value = changes.partition(": ")
    tree = {"claim": "x", "study": "hybrid-patterns", "arm": "attention-17", key: value}
    arm = tree.pop("arm")
    lines = [f"{k}: {v}" for k, v in tree.items()]
    lines += ["all_of:", f"  - {{arm: {arm}, better_than: attention-0}}"]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(LabError, match=said):
        load_claim(str(tmp_path / "mine.yaml"))


def test_the_folder_of_another_study_is_refused(verdict):
    with pytest.raises(LabError, match="arm = 'c': expected an arm of the study"):
        verdict({"a": 0.0, "b": 0.0}, all_of=[{"arm": "c", "better_than": "b"}])


def test_an_unknown_claim_suggests_the_nearest():
    with pytest.raises(LabError, match="Did you mean 'placement-matters'"):
        load_claim("placement-maters")


@pytest.mark.parametrize("name", packaged_claims())
def test_every_packaged_claim_fits_its_study(name):
    claim = load_claim(name)
    assert claim.file.about, "says where it comes from"


def test_the_tables_of_studies_and_claims():
    assert [row[0] for row in list_claims()] == packaged_claims()
    names = [row[0] for row in list_studies()]
    honest = {name for name in names if not name.endswith("-as-published")}
    alone = {"mixer-speed", "hybrid-patterns-4", "hybrid-lr-3x3"}  # nobody published these
    assert {f"{name}-as-published" for name in honest - alone} <= set(names)
