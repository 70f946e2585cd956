"""The config tree: a frozen pydantic base, YAML in and out, overrides, and readable errors.

A tree is plain dicts, lists and scalars, as YAML gives them; a config is the validated, frozen
object made from one. Overrides and presets work on trees, so that only `decode` has to judge.
"""

import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from mixlab.core.errors import ConfigError, LabError, Rule
from mixlab.core.nearest import did_you_mean

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every config class: frozen, strict about unknown keys, documented per field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, tree: Any) -> Any:
        """Python takes true for 1, and pydantic with it; in a config it is a slip."""
        for name, value in tree.items() if isinstance(tree, dict) else ():
            field = cls.model_fields.get(name)
            if field is None or not _is_of_numbers(field.annotation):
                continue
            items = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
            for place, item in items:
                if isinstance(item, bool):
                    where = f"{name}.{place}".rstrip(".")
                    wanted = " or ".join([*_words(field.annotation), "a number"])
                    raise Rule(where, item, f"{wanted}, not true or false")
        return tree


M = TypeVar("M", bound=Config)


# --- YAML -------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-3` as a number (YAML 1.2) and refuses a key given twice."""


# Only what YAML 1.2 calls a number or a truth value: 010 is ten, 12:30 and 2024-01-01 are texts.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$"
        r"|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^(?:<<)$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _decimal(loader: "_Loader", node: yaml.ScalarNode) -> int:
    return int(node.value.replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> Tree:
    mapping: Tree = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | type(None)):
            raise yaml.constructor.ConstructorError(
                None, None, "a key must be a plain word", key_node.start_mark
            )
        if key in mapping:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} is given twice", key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats)


def parse_yaml(text: str, source: str) -> Any:
    """Read YAML text; `source` names it in the error message."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = re.sub(r"\s+", " ", str(error))
        raise LabError(f"{source} is not valid YAML: {message}") from None


def read_yaml(path: Path) -> Tree:
    """Read a YAML file that must hold one mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start})."
        ) from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise LabError(f"{path} must hold a mapping of keys to values, not {_type_name(tree)}.")
    return tree


def dump_yaml(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


# --- trees ------------------------------------------------------------------------------------


def merge(base: Any, change: Any) -> Any:
    """`base` with `change` laid over it, key by key.

    A node whose `kind` changes starts afresh: settings of one kind mean nothing to another.
    """
    if not (isinstance(base, dict) and isinstance(change, dict)):
        return change
    if "kind" in change and change["kind"] != base.get("kind", change["kind"]):
        return dict(change)
    merged = dict(base)
    for key, value in change.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `train.batch_size=8` into its path and its value, which is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or any(not part for part in path.strip().split(".")):
        raise LabError(
            f"override {text!r}: expected KEY=VALUE with a dotted key, such as train.batch_size=8."
        )
    return path.strip().split("."), parse_yaml(value, f"the value of {path.strip()}")


def set_path(tree: Any, path: Sequence[str], value: Any, where: str = "") -> Any:
    """A copy of `tree` with `value` merged in at `path`; list items go by their number."""
    if not path:
        return merge(tree, value)
    key, rest = path[0], path[1:]
    here = f"{where}.{key}" if where else key
    if isinstance(tree, list) or (tree is None and key == "0"):
        items = list(tree or [])
        if not key.isdigit() or int(key) > len(items):
            raise ConfigError(
                here, value, f"the number of a list item, 0 to {len(items)}, in place of {key!r}"
            )
        old = items[int(key)] if int(key) < len(items) else None
        items[int(key) : int(key) + 1] = [set_path(old, rest, value, here)]
        return items
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(
            here, value, f"{where} to be a group of settings, but it is {tree!r}", f"Set {where}."
        )
    # The change is built as a nested tree, so that a changed `kind` resets its node (see merge).
    below = set_path((tree or {}).get(key), rest, value, here)
    changed = dict(tree or {})
    if key == "kind" and changed.get("kind", value) != value:
        return {"kind": value}
    changed[key] = below
    return changed


def override(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Apply `key=value` texts in order; all that change a `kind` go first."""
    parsed = [parse_override(text) for text in overrides]
    parsed.sort(key=lambda item: item[0][-1] != "kind")  # stable: order is kept otherwise
    for path, value in parsed:
        tree = set_path(tree, path, value)
    return tree


def flatten(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted path."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, tree


def diff(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (old, new) for every leaf that differs; an absent leaf counts as None."""
    a, b = dict(flatten(old)), dict(flatten(new))
    return {
        path: (a.get(path), b.get(path))
        for path in dict.fromkeys([*a, *b])
        if a.get(path) != b.get(path)
    }


def to_tree(config: Config) -> Tree:
    """The config as plain data that `decode` turns back into an equal config."""
    return config.model_dump(mode="json")


def digest(tree: Any) -> str:
    """A short content address of plain data: equal data, equal digest, on every machine."""
    text = json.dumps(tree, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


# --- validation -------------------------------------------------------------------------------


def decode(cls: type[M], tree: Any) -> M:
    """Validate `tree` as `cls`.

    Raises:
        ConfigError: the first thing wrong, as path, value, rule and the nearest right name.
    """
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise _translate(cls, tree, error) from None


def _translate(cls: type[Config], tree: Any, error: ValidationError) -> ConfigError:
    details = error.errors(include_url=False)
    # An unknown key explains more than the missing one that it was meant to be.
    details.sort(key=lambda d: d["type"] != "extra_forbidden")
    first = details[0]
    path = _as_typed(tree, first["loc"])
    dotted = ".".join(str(part) for part in path) or cls.__name__
    got, kind = first["input"], first["type"]
    broken = first.get("ctx", {}).get("error")
    if isinstance(broken, Rule):
        dotted = ".".join([*map(str, path), *([broken.field] if broken.field else [])])
        return ConfigError(dotted, broken.got, broken.expected, broken.fix)
    if kind == "extra_forbidden":
        names = _field_names(cls, tree, path[:-1])
        return ConfigError(
            dotted, _short(got), "a known key", _nearest(str(path[-1]), names, "keys here")
        )
    if kind == "missing":
        return ConfigError(dotted, None, "a value: this key has no default")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [t.strip(" '") for t in first["ctx"].get("expected_tags", "").split(",") if t]
        if not tags:
            tags = _tags(cls, tree, path)
        given = got.get("kind") if isinstance(got, dict) else got
        if not isinstance(got, dict):
            fix = f"Did you mean {dotted}.kind={got}?" if got in tags else ""
            return ConfigError(dotted, _short(got), "a group of settings with a kind", fix)
        where = f"{dotted}.kind" if isinstance(got, dict) else dotted
        expected = f"one of {', '.join(tags)}" if tags else "a known kind"
        return ConfigError(where, given, expected, did_you_mean(str(given), tags).strip())
    if kind == "literal_error":
        options = [o.strip("'") for o in re.split(r", | or ", first["ctx"]["expected"])]
        hint = did_you_mean(str(got), options).strip()
        return ConfigError(dotted, got, f"one of {', '.join(options)}", hint)
    rule = next((text for start, text in _RULES.items() if kind.startswith(start)), "")
    if not rule:
        rule = re.sub(r"^(Input|Value|String) should (be )?", "", first["msg"])
        rule = rule.removeprefix("Value error, ")
    tags = _tags(cls, tree, path) if isinstance(got, str) else []
    fix = f"Did you mean {dotted}.kind={got}?" if got in tags else ""
    return ConfigError(dotted, _short(got), rule[0].lower() + rule[1:], fix)


# What to say instead of pydantic's words, by the beginning of its error type.
_RULES = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_too_short": "some text",
    "string_pattern": "letters, digits, '.', '_' and '-', beginning with a letter or digit",
    "string_type": "a text; put it in quotes",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a group of settings",
    "model_type": "a group of settings",
    "model_attributes_type": "a group of settings",
    "invalid_key": "names as keys",
}


def _as_typed(tree: Any, loc: Sequence[str | int]) -> list[str | int]:
    """A pydantic location without the union tags that pydantic puts into it."""
    path: list[str | int] = []
    loc = [part for part in loc if part != "[key]"]  # what pydantic says of a key that is no name
    for i, part in enumerate(loc):
        is_last = i == len(loc) - 1
        is_key = isinstance(tree, Mapping) and part in tree
        is_item = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if is_key or is_item:
            tree = tree[part]
        elif not is_last or not isinstance(tree, Mapping) or tree.get("kind") == part:
            continue
        path.append(part)
    return path


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The config classes that a field's annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, list, tuple, dict):
        for argument in get_args(annotation):
            yield from _models(argument)


def _at(cls: type[BaseModel], tree: Any, path: Sequence[str | int]) -> list[type[BaseModel]]:
    """The classes that may sit at `path`, narrowed by the `kind` found in the tree."""
    here: list[type[BaseModel]] = [cls]
    for part in path:
        tree = tree[part] if isinstance(tree, list | Mapping) else None
        fields = [c.model_fields[part] for c in here if part in c.model_fields]
        below = [model for field in fields for model in _models(field.annotation)]
        below = below or here  # an item of a list or dict: its field was resolved a step ago
        kind = tree.get("kind") if isinstance(tree, Mapping) else None
        narrowed = [model for model in below if kind is not None and _kind(model) == kind]
        here = narrowed or below
    return here


def _is_of_numbers(annotation: Any) -> bool:
    """Whether a field takes numbers, alone or in a list, and no truth values or settings."""
    leaves = set(_leaves(annotation))
    return bool(leaves & {int, float}) and not leaves & {bool, Any}


def _words(annotation: Any) -> list[str]:
    """The words that a field takes instead of a number."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [word for argument in get_args(annotation) for word in _words(argument)]


def _leaves(annotation: Any) -> Iterator[Any]:
    """What a field's annotation is made of: types, and the values of literals by their type."""
    if get_origin(annotation) is Literal:
        yield from (type(value) for value in get_args(annotation))
    elif get_origin(annotation) is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple):
        for argument in get_args(annotation):
            yield from _leaves(argument)
    elif isinstance(annotation, type) or annotation is Any:
        yield annotation


def _kind(model: type[BaseModel]) -> Any:
    """The name that a config uses for this class, if it is one of several kinds."""
    field = model.model_fields.get("kind")
    return field.default if field is not None else None


def _field_names(cls: type[BaseModel], tree: Any, path: Sequence[str | int]) -> list[str]:
    return [name for model in _at(cls, tree, path) for name in model.model_fields]


def _tags(cls: type[BaseModel], tree: Any, path: Sequence[str | int]) -> list[str]:
    found = [_kind(model) for model in _at(cls, tree, path)]
    return [str(kind) for kind in dict.fromkeys(found) if kind is not None]


def _nearest(name: str, names: Sequence[str], what: str) -> str:
    hint = did_you_mean(name, names).strip()
    if hint:
        return hint
    return f"The {what} are {', '.join(dict.fromkeys(names))}." if names else ""


def _short(value: Any) -> Any:
    return value if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."


def _type_name(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a single value")
