"""Our dataclasses beside the standard library's: declared alike, they must behave alike."""

import copy
import dataclasses
import pickle
from types import ModuleType
from typing import Any, ClassVar

import pytest

from pellucid import records


def plain(made: ModuleType) -> Any:
    @made.dataclass
    class Plain:
        first: int
        second: list[int] = made.field(default_factory=list)
        third: str = made.field(default="c", repr=False, compare=False)
        shared: ClassVar[int] = 5

    return Plain


def frozen(made: ModuleType) -> Any:
    @made.dataclass(frozen=True)
    class Frozen:
        first: int
        second: str = "b"
        sum: str = made.field(init=False, compare=False)
        kept: int = made.field(default=4, init=False)

        def __post_init__(self) -> None:
            object.__setattr__(self, "sum", f"{self.first}{self.second}")

    return Frozen


def slotted(made: ModuleType) -> Any:
    @made.dataclass(frozen=True, slots=True)
    class Slotted:
        first: int
        second: str = "b"

    return Slotted


def derived(made: ModuleType) -> Any:
    @made.dataclass(slots=True)
    class Base:
        first: int
        second: int = 2

    @made.dataclass(slots=True)
    class Derived(Base):
        third: int = 3
        second: int = 22

    return Derived


def empty(made: ModuleType) -> Any:
    @made.dataclass(frozen=True)
    class Empty:
        pass

    return Empty


def identity(made: ModuleType) -> Any:
    @made.dataclass(eq=False)
    class Identity:
        first: int

    return Identity


def own(made: ModuleType) -> Any:
    @made.dataclass(frozen=True)
    class Own:
        first: int
        second: int = 0

        def __repr__(self) -> str:
            return "<own>"

        def __hash__(self) -> int:
            return 7

    return Own


KINDS = (plain, frozen, slotted, derived, empty, identity, own)


def attempts(kind: Any, made: ModuleType) -> dict[str, Any]:
    """What comes of everything that one can do with such a class."""

    def attempt(what: Any) -> Any:
        try:
            return what()
        except (TypeError, AttributeError) as error:
            return type(error).__name__, str(error)

    def change(name: str) -> Any:
        setattr(one(), name, 9)
        return "changed"

    def one() -> Any:
        return kind() if not made.fields(kind) else kind(1)

    return {
        "repr": attempt(lambda: repr(one()).rpartition(".")[2] if "object at" not in repr(one()) else "object"),
        "none": attempt(lambda: made.astuple(kind())),
        "one": attempt(lambda: made.astuple(kind(1))),
        "named": attempt(lambda: made.asdict(kind(first=1))),
        "many": attempt(lambda: made.asdict(kind(1, [2], third="x"))),
        "too many": attempt(lambda: kind(1, 2, 3, 4)),
        "unknown": attempt(lambda: kind(1, nothing=2)),
        "equal": attempt(lambda: (one() == one(), one() != one(), one() == 1)),
        "unequal": attempt(lambda: kind(1) == kind(2)),
        "hash": attempt(lambda: hash(one()) == hash(one())),
        "change": attempt(lambda: change("first")),
        "another": attempt(lambda: change("another")),
        "delete": attempt(lambda: delattr(one(), "first")),
        "replace": attempt(lambda: made.astuple(made.replace(one(), first=5))),
        "replace unknown": attempt(lambda: made.replace(one(), nothing=5)),
        "fields": [each.name for each in made.fields(kind)],
        "match": kind.__match_args__,
        "slots": getattr(kind, "__slots__", None),
        "copy": attempt(lambda: made.astuple(copy.copy(one()))),
        "class attributes": sorted(name for name in ("first", "second", "third", "shared") if hasattr(kind, name)),
        "kind": (made.is_dataclass(kind), made.is_dataclass(one()), made.is_dataclass(1)),
    }


@pytest.mark.parametrize("declare", KINDS, ids=lambda kind: kind.__name__)
def test_a_class_behaves_as_the_standard_librarys(declare: Any) -> None:
    theirs, ours = attempts(declare(dataclasses), dataclasses), attempts(declare(records), records)
    if declare is slotted:  # 3.11's looks into the class that it has replaced by the one with slots, and trips
        assert theirs.pop("another")[0] == "TypeError"
    assert {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]} == {}


def test_defaults_are_not_shared() -> None:
    kind = plain(records)
    kind(1).second.append(5)
    assert kind(1).second == []
    with pytest.raises(ValueError, match=r"Bad\.items: objects would share this default"):

        @records.dataclass
        class Bad:
            items: list[int] = []


def test_a_class_that_is_derived_without_a_decorator_is_no_longer_quite_frozen() -> None:
    class More(frozen(records)):  # type: ignore[misc]
        pass

    value = More(1)
    value.another = 2
    with pytest.raises(records.FrozenInstanceError, match="cannot assign to field 'first'"):
        value.first = 2
    assert value.another == 2


@records.dataclass(frozen=True, slots=True)
class Sent:
    words: tuple[str, ...]
    count: int = 0


def test_a_frozen_object_with_slots_goes_through_pickle() -> None:
    assert pickle.loads(pickle.dumps(Sent(("a", "b"), 2))) == Sent(("a", "b"), 2)


def test_objects_within_are_converted_too() -> None:
    inner = Sent(("a",))
    assert records.asdict(Sent((inner,), 1)) == {"words": ({"words": ("a",), "count": 0},), "count": 1}  # type: ignore[arg-type]
    assert records.astuple(Sent((inner,), 1)) == (((("a",), 0),), 1)  # type: ignore[arg-type]


def test_metadata_is_kept() -> None:
    @records.dataclass
    class Wide:
        value: int = records.field(default=0, metadata={"bits": 16})

    assert records.fields(Wide)[0].metadata["bits"] == 16
    assert Wide().value == 0
