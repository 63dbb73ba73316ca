"""The types of QMP, from Python's: values checked and converted on the way in, made plain on the way out.

    int, str, bool, float, object     builtin types; `object` is QAPI's `any`
    list[T]                           arrays
    Literal["a", "b"], an Enum        enumerations
    a dataclass                       an object; `_` in a name is `-` in QMP, a field with a default is optional
    A | B of dataclasses              a union, told apart by the field `type`, a Literal of one name in each

An error's text is QEMU's, since programs and people look for it.
"""

import functools
import operator
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pellucid.monitor.errors import CommandError
from pellucid.monitor.json_value import JsonValue
from pellucid.records import MISSING, dataclass, field, fields, is_dataclass

TAG = "type"
"""The member that tells the branches of a union apart."""


@dataclass(frozen=True)
class OneOf:
    """Names of an enumeration that is data rather than code: `Annotated[str, OneOf(names)]`."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """A named value of an object or of a command's arguments. `name` is QMP's, `attribute` Python's."""

    name: str
    attribute: str
    type: Any
    optional: bool


def plain_type(annotation: Any) -> Any:
    """`annotation` without None and without what Annotated adds, but for OneOf, which takes its place."""
    if hasattr(annotation, "__metadata__"):
        for extra in annotation.__metadata__:
            if isinstance(extra, OneOf):
                return extra
        return plain_type(annotation.__origin__)
    if is_union(annotation):
        rest = [part for part in get_args(annotation) if part is not type(None)]
        if len(rest) == 1:
            return plain_type(rest[0])
        return functools.reduce(operator.or_, rest)
    return annotation


def is_union(annotation: Any) -> bool:
    """Whether it is A | B."""
    return get_origin(annotation) in (Union, types.UnionType)


def qapi_name(attribute: str) -> str:
    """QMP's spelling of a Python name."""
    return attribute.rstrip("_").replace("_", "-")


@functools.cache
def members(kind: Any) -> tuple[Member, ...]:
    """The members of an object type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return tuple(
        Member(
            each.metadata.get("qapi", qapi_name(each.name)),
            each.name,
            plain_type(hints[each.name]),
            each.default is not MISSING or each.default_factory is not MISSING,
        )
        for each in fields(kind)
    )


def named(name: str) -> Any:
    """A dataclass field whose name in QMP follows no rule (`UUID`)."""
    return field(metadata={"qapi": name})


def enum_values(kind: Any) -> tuple[str, ...] | None:
    """The names of an enumeration; None when `kind` is none."""
    if isinstance(kind, OneOf):
        return kind.values
    if get_origin(kind) is Literal:
        return tuple(str(value) for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return None


def branches(kind: Any) -> dict[str, type]:
    """The object types of a union by their tag."""
    found: dict[str, type] = {}
    for branch in get_args(kind):
        tag = next(member for member in members(branch) if member.name == TAG)
        found[get_args(tag.type)[0]] = branch
    return found


# ---- in


_EXPECTED = {int: "integer", str: "string", bool: "boolean", float: "number"}


def check(kind: Any, value: JsonValue, path: str, name: str | None = None) -> Any:
    """`value` as a `kind`. `path` names it in full, `name` alone (None in an array). Raises CommandError."""
    if kind is object:
        return value
    if kind in _EXPECTED:
        return _check_builtin(kind, value, path)
    names = enum_values(kind)
    if names is not None:
        if not isinstance(value, str):
            raise _wrong_type(path, "string")
        if value not in names:
            raise CommandError(f"Parameter '{name or 'null'}' does not accept value '{value}'")
        return kind(value) if isinstance(kind, type) else value
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise _wrong_type(path, "array")
        element = plain_type(get_args(kind)[0])
        return [check(element, item, f"{path}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        raise _wrong_type(path, "object")
    if is_union(kind):
        found = branches(kind)
        if TAG not in value:
            raise CommandError(f"Parameter '{path}.{TAG}' is missing")
        kind = found[check(OneOf(tuple(found)), value[TAG], f"{path}.{TAG}", TAG)]
    return kind(**check_members(members(kind), value, f"{path}."))


def check_members(expected: tuple[Member, ...], given: Mapping[str, JsonValue], prefix: str = "") -> dict[str, Any]:
    """Python's keyword arguments from an object's members. Raises CommandError."""
    checked: dict[str, Any] = {}
    for member in expected:
        if member.name in given:
            checked[member.attribute] = check(member.type, given[member.name], prefix + member.name, member.name)
        elif not member.optional:
            raise CommandError(f"Parameter '{prefix}{member.name}' is missing")
    if len(checked) != len(given):
        known = {member.name for member in expected}
        raise CommandError(f"Parameter '{prefix}{next(name for name in given if name not in known)}' is unexpected")
    return checked


def _check_builtin(kind: type, value: JsonValue, path: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int:
        if isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63:
            return value
    elif isinstance(value, kind):
        return value
    raise _wrong_type(path, _EXPECTED[kind])


def _wrong_type(path: str, expected: str) -> CommandError:
    return CommandError(f"Invalid parameter type for '{path}', expected: {expected}")


# ---- out


def plain(value: Any) -> JsonValue:
    """`value` as JSON has it. A member that is None is absent."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((member.name, getattr(value, member.attribute)) for member in members(type(value)))
        return {name: plain(item) for name, item in pairs if item is not None}
    return [plain(item) for item in value]


# ---- introspection


class Schema:
    """`query-qmp-schema`: the entries made so far. Types get numbers for names, so that nobody relies on ours."""

    def __init__(self) -> None:
        self.entries: list[dict[str, JsonValue]] = []
        self._names: dict[Any, str] = {}

    def add_command(self, name: str, arguments: tuple[Member, ...], result: Any, oob: bool) -> None:
        """A command; `result` None when it has none."""
        entry: dict[str, JsonValue] = {"name": name, "meta-type": "command"}
        entry["arg-type"] = self._object(("arguments", name) if arguments else (), arguments)
        entry["ret-type"] = self._object((), ()) if result is None else self.type_name(result)
        if oob:
            entry["allow-oob"] = True
        self.entries.append(entry)

    def add_event(self, name: str, data: type | None) -> None:
        """An event with what comes with it."""
        arguments = self._object((), ()) if data is None else self.type_name(data)
        self.entries.append({"name": name, "meta-type": "event", "arg-type": arguments})

    def type_name(self, kind: Any) -> str:
        """The name of a type's entry, which is made on first use."""
        builtin = _BUILTIN.get(kind)
        if builtin is not None:
            return self._entry(kind, {"meta-type": "builtin", "json-type": builtin[1]}, builtin[0])
        if get_origin(kind) is list:
            element = self.type_name(plain_type(get_args(kind)[0]))
            return self._entry(kind, {"meta-type": "array", "element-type": element}, f"[{element}]")
        values = enum_values(kind)
        if values is not None:
            return self._enum(kind, values)
        if is_union(kind):
            return self._union(kind)
        return self._object(kind, members(kind))

    def _enum(self, key: Any, values: tuple[str, ...]) -> str:
        listed: list[JsonValue] = [{"name": value} for value in values]
        return self._entry(key, {"meta-type": "enum", "members": listed, "values": list(values)})

    def _object(self, key: Any, listed: tuple[Member, ...]) -> str:
        if key in self._names:
            return self._names[key]
        entry: dict[str, JsonValue] = {"meta-type": "object"}
        name = self._entry(key, entry)
        entry["members"] = list(self._members(listed))
        return name

    def _members(self, listed: tuple[Member, ...]) -> Iterator[JsonValue]:
        for member in listed:
            described: dict[str, JsonValue] = {"name": member.name, "type": self.type_name(member.type)}
            if member.optional:
                described["default"] = None
            yield described

    def _union(self, kind: Any) -> str:
        found = branches(kind)
        tag = self._enum(("tag", kind), tuple(found))
        variants: list[JsonValue] = []
        for case, branch in found.items():
            own = tuple(member for member in members(branch) if member.name != TAG)
            variants.append({"case": case, "type": self._object(branch if own else (), own)})
        entry: dict[str, JsonValue] = {"meta-type": "object", "tag": TAG, "variants": variants}
        entry["members"] = [{"name": TAG, "type": tag}]
        return self._entry(kind, entry)

    def _entry(self, key: Any, entry: dict[str, JsonValue], name: str | None = None) -> str:
        if key not in self._names:
            self._names[key] = str(sum(used.isdigit() for used in self._names.values())) if name is None else name
            entry["name"] = self._names[key]
            self.entries.append(entry)
        return self._names[key]


_BUILTIN: dict[Any, tuple[str, str]] = {
    int: ("int", "int"),
    str: ("str", "string"),
    bool: ("bool", "boolean"),
    float: ("number", "number"),
    object: ("any", "value"),
}
