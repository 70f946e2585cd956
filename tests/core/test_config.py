"""Trees, overrides, and what a person is told about a wrong value."""

from contextlib import suppress
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, PositiveInt, model_validator

from mixlab.core.config import (
    Config,
    decode,
    diff,
    digest,
    dump_yaml,
    flatten,
    merge,
    override,
    parse_yaml,
    to_tree,
)
from mixlab.core.errors import ConfigError, LabError, Rule
from mixlab.core.registry import Registry


class Disc(Config):
    """Round."""

    kind: Literal["disc"] = "disc"
    radius: float = Field(gt=0)


class Box(Config):
    """Not round."""

    kind: Literal["box"] = "box"
    width: PositiveInt
    height: PositiveInt = 1

    @model_validator(mode="after")
    def _fits(self):
        if self.height > self.width:
            raise Rule("height", self.height, f"at most width = {self.width}", "Turn it.")
        return self


SHAPES = Registry({"disc": Disc, "box": Box})


class Drawing(Config):
    """A page with shapes."""

    main: SHAPES.annotation()
    others: tuple[SHAPES.annotation(), ...] = ()
    named: dict[str, Box] = Field(default={})
    title: str = "none"
    scale: float = 1.0
    sizes: tuple[int, ...] = ()
    limit: Literal["auto"] | PositiveInt | None = None
    is_shown: bool = False
    compile: Literal["auto", True] = "auto"


TREE = {"main": {"kind": "disc", "radius": 2}}


def message(tree):
    with pytest.raises(ConfigError) as error:
        decode(Drawing, tree)
    return str(error.value)


def test_a_config_survives_its_file():
    drawing = decode(Drawing, {**TREE, "others": [{"kind": "box", "width": 3}], "scale": 1e-5})
    assert decode(Drawing, parse_yaml(dump_yaml(to_tree(drawing)), "test")) == drawing


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_its_file(value):
    text = dump_yaml(to_tree(decode(Drawing, {**TREE, "scale": value})))
    assert decode(Drawing, parse_yaml(text, "test")).scale == value


@pytest.mark.parametrize(
    ("tree", "start", "end"),
    [
        ({**TREE, "titel": "x"}, "titel = 'x': expected a known key.", "Did you mean 'title'?"),
        ({"main": {"kind": "disk", "radius": 1}}, "main.kind = 'disk'", "Did you mean 'disc'?"),
        ({"main": {"radius": 1}}, "main.kind = None", "one of disc, box."),
        ({"main": {"kind": "disc"}}, "main.radius = None", "this key has no default."),
        ({"main": {"kind": "disc", "radius": 0}}, "main.radius = 0", "greater than 0."),
        ({"main": {"kind": "box", "width": 2, "heigth": 1}}, "main.heigth", "'height'?"),
        ({"main": {"kind": "box", "width": 2, "height": 3}}, "main.height = 3", "Turn it."),
        ({**TREE, "others": [{"kind": "box", "width": "x"}]}, "others.0.width = 'x'", "."),
        ({**TREE, "others": [{"kind": "bx"}]}, "others.0.kind = 'bx'", "Did you mean 'box'?"),
        ({**TREE, "named": {"a": {"width": -1}}}, "named.a.width = -1", "greater than 0."),
        ({**TREE, "named": {"a": {"width": 1, "hight": 1}}}, "named.a.hight", "'height'?"),
        ({**TREE, "scale": True}, "scale = True: expected a number, not true", "."),
        ({**TREE, "sizes": [1, False]}, "sizes.1 = False: expected a number, not", "."),
        ({**TREE, "limit": True}, "limit = True: expected auto or a number, not true", "."),
        ({**TREE, "named": {7: {"width": 1}}}, "named.7 = 7: expected a text", "in quotes."),
        ({"main": 3}, "main", "."),
        ({}, "main", "no default."),
    ],
)  # fmt: skip
def test_messages_name_path_value_rule_and_the_nearest_name(tree, start, end):
    text = message(tree)
    assert text.startswith(start) and text.endswith(end), text


def test_truth_values_stay_where_they_belong():
    found = decode(Drawing, {**TREE, "is_shown": True, "compile": True, "scale": 2})
    assert found.is_shown is True and found.compile is True and found.scale == 2.0


def test_a_changed_kind_starts_afresh():
    """Settings of one kind mean nothing to another."""
    tree = {"main": {"kind": "disc", "radius": 2}}
    assert merge(tree, {"main": {"kind": "box", "width": 1}}) == {
        "main": {"kind": "box", "width": 1}
    }
    assert override(tree, ["main.width=3", "main.kind=box"]) == {
        "main": {"kind": "box", "width": 3}
    }
    assert override(tree, ["main.kind=disc"]) == tree


def test_overrides():
    tree = {"a": {"b": [1, {"c": 2}]}, "d": None}
    assert override(tree, ["a.b.1.c=5", "d.e=[1, 2]", "f=1e-3", "g=null", "h="]) == {
        "a": {"b": [1, {"c": 5}]}, "d": {"e": [1, 2]}, "f": 1e-3, "g": None, "h": None,
    }  # fmt: skip
    assert tree == {"a": {"b": [1, {"c": 2}]}, "d": None}, "the original is left alone"


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", "", "a.b.7=1", "a.b.x=1", "c.d=1"])
def test_bad_overrides_are_refused(text):
    with pytest.raises(LabError):
        override({"a": {"b": [1]}, "c": "text"}, [text])


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2", "a: [", "? [a]\n: 1", "a: !!python/object:os.system x", "\x00", "&a *a"]
)
def test_bad_yaml_is_refused(text):
    with pytest.raises(LabError, match="the file is not valid YAML"):
        parse_yaml(text, "the file")


def test_diff_names_leaves():
    old, new = {"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": [1]}, "d": 0}
    assert diff(old, new) == {"a.b": (1, 2), "d": (None, 0)}
    assert dict(flatten(old)) == {"a.b": 1, "a.c": [1]}


def test_digest_does_not_depend_on_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "width", "radius", "0", ""]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ["main", "others", "named", "title", "scale", "kind"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values)
def test_any_tree_is_a_config_or_a_readable_error(tree):
    try:
        decode(Drawing, tree)
    except LabError as error:
        assert "\n\n" not in str(error)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=8)), max_size=3))
def test_any_override_is_taken_or_refused(pairs):
    with suppress(LabError):
        decode(Drawing, override(dict(TREE), [f"{key}={value}" for key, value in pairs]))


path = st.lists(st.sampled_from([*KEYS, "0", "width", "radius"]), min_size=1, max_size=3)


@given(path, st.sampled_from(["box", "disc", "1", "{}", "[]", "[{kind: box}]", "null", "~", "a"]))
def test_overrides_that_nearly_fit(keys, value):
    with suppress(LabError):
        decode(Drawing, override(dict(TREE), [f"{'.'.join(keys)}={value}"]))
