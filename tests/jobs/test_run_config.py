"""The whole config of a run: rules between its parts, and no input that breaks the reader."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixlab.core.config import decode, flatten, override, to_tree
from mixlab.core.errors import ConfigError, LabError
from mixlab.jobs.config import RunConfig, load_config

TREE = to_tree(load_config("quickstart"))
PATHS = [path for path, _ in flatten(TREE)]
GROUPS = sorted({path.rsplit(".", n)[0] for path in PATHS for n in (1, 2, 3) if "." in path})
ODD = st.sampled_from(
    [None, True, 0, -1, 1, 10**30, 0.5, -0.0, float("nan"), float("inf"), "", "\x00", "\ud800",
     "x" * 200, [], [[]], {}, {"kind": None}, {"kind": "nothing"}, {"kind": ["a"]}, {1: 2}]
)  # fmt: skip


@given(st.sampled_from(PATHS + GROUPS), ODD | st.text(max_size=4) | st.integers() | st.floats())
def test_a_tree_with_one_odd_value_is_a_config_or_a_readable_error(path, value):
    tree = copy.deepcopy(TREE)
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        node = node[key]
    node[last] = value
    try:
        config = decode(RunConfig, tree)
    except LabError as error:
        assert str(error)
    else:
        assert decode(RunConfig, yaml.safe_load(yaml.safe_dump(to_tree(config)))) == config


@given(st.sampled_from(PATHS), st.integers(0, 8), st.sampled_from("abz_.=0"), st.text(max_size=5))
def test_a_misspelt_override_is_taken_or_refused(path, at, letter, value):
    try:
        decode(RunConfig, override(TREE, [f"{path[:at]}{letter}{path[at + 1 :]}={value}"]))
    except LabError as error:
        assert str(error)


@pytest.mark.parametrize("path", PATHS)
def test_a_missing_letter_in_any_key_is_found_again(path):
    """The message proposes the key that was meant."""
    *parents, last = path.split(".")
    if last == "kind" or not parents or parents[-1] in ("blocks",) or len(last) < 4:
        return
    wrong = last[:1] + last[2:]
    value = dict(flatten(TREE))[path]
    tree = copy.deepcopy(TREE)
    node = tree
    for key in parents:
        node = node[key]
    node[wrong] = value
    with pytest.raises(ConfigError) as error:
        decode(RunConfig, tree)
    assert f"Did you mean {last!r}?" in str(error.value)
    assert str(error.value).startswith(".".join([*parents, wrong]))


def test_tokens_per_step():
    config = load_config("quickstart", ["train.batch_size=6", "data.seq_len=32"])
    assert config.tokens_per_step == 192
