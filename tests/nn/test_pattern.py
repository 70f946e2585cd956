"""Which block stands where, by hand, and rules that cannot be met."""

import pytest

from mixlab.core.config import decode
from mixlab.core.errors import ConfigError, Rule
from mixlab.nn.pattern import Pattern


@pytest.mark.parametrize(
    ("tree", "n_layers", "want"),
    [
        (["a", "a", "b"], 7, "aabaaba"),
        (["a"], 3, "aaa"),
        ({"motif": ["a", "b"]}, 1, "a"),
        ({"block": "b", "every": 3, "rest": "a"}, 7, "aabaaba"),
        ({"block": "b", "every": 1}, 3, "bbb"),
        ({"block": "b", "every": 9, "rest": "a"}, 3, "aaa"),
        ({"block": "b", "at": [0, 4], "rest": "a"}, 5, "baaab"),
        ({"block": "b", "at": [], "rest": "a"}, 2, "aa"),
        ({"block": "b", "at": [0, 1]}, 2, "bb"),
    ],
)
def test_expansion(tree, n_layers, want):
    pattern = decode(Pattern, tree)
    assert pattern.expand(n_layers) == list(want)
    assert set(want) <= pattern.names()


@pytest.mark.parametrize(
    "tree",
    [[], {"motif": []}, {"motif": ["a"], "rest": "b"}, {"block": "a"}, {}, {"every": 2},
     {"block": "a", "at": [1], "every": 2}, {"block": "a", "at": [1, 1]},
     {"block": "a", "at": [-1]}, {"block": "a", "every": 0}, {"blok": "a", "every": 2}],
)  # fmt: skip
def test_rules_that_say_nothing_or_too_much(tree):
    with pytest.raises(ConfigError):
        decode(Pattern, tree)


def test_a_layer_that_does_not_exist_and_layers_without_a_block():
    with pytest.raises(Rule) as error:
        decode(Pattern, {"block": "b", "at": [2, 5], "rest": "a"}).expand(4)
    assert error.value.field == "at" and "Layer 5" in error.value.fix
    with pytest.raises(Rule) as error:
        decode(Pattern, {"block": "b", "every": 2}).expand(4)
    assert error.value.field == "rest"
