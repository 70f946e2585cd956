"""The packaged studies and claims as tables for people."""

from mixlab.studies.arms import arm_specs
from mixlab.studies.claims.claim_file import load_claim, packaged_claims
from mixlab.studies.study_file import load_study, packaged_studies


def list_studies() -> list[tuple[str, str, str, str]]:
    """(name, arms, seeds, its question) of every packaged study."""
    rows = []
    for name in packaged_studies():
        study = load_study(name)
        n_arms = len(arm_specs(study))
        rows.append((name, str(n_arms), str(len(study.seeds)), _first_sentence(study.about)))
    return rows


def list_claims() -> list[tuple[str, str, str]]:
    """(name, study, sentence) of every packaged claim."""
    loaded = [load_claim(name).file for name in packaged_claims()]
    return [(claim.name, claim.study, claim.claim) for claim in loaded]


def _first_sentence(text: str) -> str:
    """Up to the first question mark, full stop or colon that ends a sentence."""
    one_line = " ".join(text.split())
    ends = [place for mark in ("? ", ". ") if (place := one_line.find(mark)) >= 0]
    return one_line[: min(ends) + 1] if ends else one_line
