"""Python's types as QMP's: what is taken, what is refused and in which words, and how it describes itself."""

from enum import Enum
from typing import Annotated, Literal

import pytest

from pellucid.monitor.errors import CommandError
from pellucid.monitor.json_value import JsonValue
from pellucid.monitor.qapi import OneOf, Schema, check, check_members, members, named, plain
from pellucid.records import dataclass, field


class Colour(Enum):
    RED = "red"
    DEEP_BLUE = "deep-blue"


@dataclass(frozen=True)
class Circle:
    type: Literal["circle"]
    radius: int


@dataclass(frozen=True)
class Dot:
    type: Literal["dot"]


@dataclass(frozen=True)
class Picture:
    shapes: list[Circle | Dot]
    main_colour: Colour
    mode: Literal["fast", "slow"] | None = None
    key: Annotated[str, OneOf(("a", "b"))] | None = None
    extra: object = None
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Named:
    uuid: str = named("UUID")


GOOD: JsonValue = {
    "shapes": [{"type": "circle", "radius": 3}, {"type": "dot"}],
    "main-colour": "deep-blue",
    "mode": "fast",
    "extra": {"x": [1]},
}


def test_objects_come_and_go() -> None:
    made = check(Picture, GOOD, "p", "p")
    assert made == Picture([Circle("circle", 3), Dot("dot")], Colour.DEEP_BLUE, "fast", extra={"x": [1]})
    assert plain(made) == {**GOOD, "tags": []}  # type: ignore[dict-item]
    assert plain(Named("1")) == {"UUID": "1"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"shapes": 3}, "Invalid parameter type for 'shapes', expected: array"),
        ({"shapes": [3]}, "Invalid parameter type for 'shapes[0]', expected: object"),
        ({"shapes": [{}]}, "Parameter 'shapes[0].type' is missing"),
        ({"shapes": [{"type": "num"}]}, "Parameter 'type' does not accept value 'num'"),
        ({"shapes": [{"type": 3}]}, "Invalid parameter type for 'shapes[0].type', expected: string"),
        ({"shapes": [{"type": "circle"}]}, "Parameter 'shapes[0].radius' is missing"),
        ({"shapes": [{"type": "circle", "radius": True}]},
         "Invalid parameter type for 'shapes[0].radius', expected: integer"),
        ({"shapes": [{"type": "circle", "radius": 1 << 63}]},
         "Invalid parameter type for 'shapes[0].radius', expected: integer"),
        ({"shapes": [{"type": "dot", "x": 1}]}, "Parameter 'shapes[0].x' is unexpected"),
        ({"main-colour": "green"}, "Parameter 'main-colour' does not accept value 'green'"),
        ({"mode": None}, "Invalid parameter type for 'mode', expected: string"),
        ({"key": "c"}, "Parameter 'key' does not accept value 'c'"),
        ({"tags": [1]}, "Invalid parameter type for 'tags[0]', expected: string"),
        ({"main_colour": "red"}, "Parameter 'main_colour' is unexpected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_qemu_says_it(changes: dict[str, JsonValue], error: str) -> None:
    assert isinstance(GOOD, dict)
    with pytest.raises(CommandError) as caught:
        check_members(members(Picture), {**GOOD, **changes})
    assert str(caught.value) == error


def test_types_describe_themselves() -> None:
    schema = Schema()
    schema.add_command("draw", members(Picture), list[Named], True)
    schema.add_command("stop", (), None, False)
    schema.add_event("DRAWN", Picture)
    entries = {entry["name"]: entry for entry in schema.entries}
    assert len(entries) == len(schema.entries)
    draw, result = entries["draw"], entries[entries["draw"]["ret-type"]]  # type: ignore[index]
    assert draw["allow-oob"] is True and result["meta-type"] == "array"
    arguments = {member["name"]: member for member in entries[draw["arg-type"]]["members"]}  # type: ignore
    assert arguments["shapes"].keys() == {"name", "type"} and arguments["mode"]["default"] is None
    assert entries[arguments["key"]["type"]]["values"] == ["a", "b"]
    assert entries[arguments["extra"]["type"]] == {"name": "any", "meta-type": "builtin", "json-type": "value"}
    union = entries[entries[arguments["shapes"]["type"]]["element-type"]]  # type: ignore[index]
    assert union["tag"] == "type" and [v["case"] for v in union["variants"]] == ["circle", "dot"]  # type: ignore
    assert entries["stop"]["arg-type"] == entries["stop"]["ret-type"]
