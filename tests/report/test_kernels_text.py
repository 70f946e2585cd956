"""The court's verdicts as a reader of the report finds them."""

from mixlab.report.kernels import kernels_text


def test_says_what_ran_how_fast_and_what_did_not():
    candidates = [
        {"name": "flash_qla", "agrees": False, "ms": None, "note": "o is off by 1.0e+00"},
        {"name": "fla", "agrees": True, "ms": 2.306, "note": ""},
    ]
    verdicts = [
        {"op": "gated_delta_rule", "chosen": "fla", "candidates": candidates},
        {"op": "attention", "chosen": None, "candidates": []},
    ]
    assert kernels_text({"verdicts": verdicts}) == (
        "gated_delta_rule by fla (2.31 ms, flash_qla: o is off by 1.0e+00); "
        "attention by the rule of auto ()"
    )
    assert kernels_text({}) == ""
