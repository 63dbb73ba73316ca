"""Making a class's methods from its annotated fields, each as late and as cheaply as it can be."""

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, get_origin

FIELDS = "__dataclass_fields__"
MISSING: Any = type("MISSING", (), {"__repr__": lambda self: "MISSING"})()
"""Stands for a default that there is none of."""
_NO_METADATA: Mapping[Any, Any] = MappingProxyType({})


class FrozenInstanceError(AttributeError):
    """A field of a frozen object was to be changed."""


class Field:
    """One field. `init`: `__init__` takes it, else the class sets it; `repr`: it is shown; `compare`: it counts in `==`
    and `hash`; `metadata`: whatever its class wants.
    """

    __slots__ = ("name", "default", "default_factory", "init", "repr", "compare", "metadata")

    def __init__(self, default: Any, factory: Any, init: bool, repr: bool, compare: bool, metadata: Any) -> None:
        self.name = ""
        self.default, self.default_factory = default, factory
        self.init, self.repr, self.compare = init, repr, compare
        self.metadata = _NO_METADATA if metadata is None else MappingProxyType(metadata)

    def __class_getitem__(cls, kind: Any) -> Any:
        return cls


def field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    init: bool = True,
    repr: bool = True,
    compare: bool = True,
    metadata: Mapping[Any, Any] | None = None,
) -> Any:
    """What a class's body gives a field that needs more than a default."""
    return Field(default, default_factory, init, repr, compare, metadata)


def dataclass(cls: Any = None, /, *, frozen: bool = False, slots: bool = False, eq: bool = True) -> Any:
    """Decorator: `@dataclass`, `@dataclass(frozen=True, slots=True)`."""
    if cls is None:
        return lambda decorated: _make(decorated, frozen, slots, eq)
    return _make(cls, frozen, slots, eq)


def is_dataclass(value: Any) -> bool:
    """Whether it is such a class or an object of one."""
    return hasattr(value if isinstance(value, type) else type(value), FIELDS)


def fields(value: Any) -> tuple[Field, ...]:
    """The fields of a class or of an object, in the order of `__init__`."""
    found = getattr(value, FIELDS, None)
    if found is None:
        raise TypeError(f"{value!r} is no dataclass and no object of one")
    return tuple(found.values())


def replace(value: Any, /, **changes: Any) -> Any:
    """A new object with some fields changed."""
    for name, each in value.__dataclass_fields__.items():
        if name not in changes and each.init:
            changes[name] = getattr(value, name)
    return type(value)(**changes)


def asdict(value: Any) -> dict[str, Any]:
    """The fields by name; objects of such classes within become dictionaries too."""
    return {each.name: _copied(getattr(value, each.name), asdict) for each in fields(value)}


def astuple(value: Any) -> tuple[Any, ...]:
    """The fields' values; objects of such classes within become tuples too."""
    return tuple(_copied(getattr(value, each.name), astuple) for each in fields(value))


def _copied(value: Any, convert: Callable[[Any], Any]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return convert(value)
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, convert) for item in value)
    if isinstance(value, dict):
        return {key: _copied(item, convert) for key, item in value.items()}
    return value


# ---- making a class


def _make(cls: Any, frozen: bool, slots: bool, eq: bool) -> Any:
    own = dict(_declared(cls))
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        found.update(base.__dict__.get(FIELDS, {}))
    found.update(own)
    for each in own.values():
        _leave_default(cls, each)
    if slots:
        cls = _with_slots(cls, tuple(found), frozen)
    setattr(cls, FIELDS, found)
    setattr(cls, "__match_args__", tuple(name for name, each in found.items() if each.init))
    shown = tuple(name for name, each in found.items() if each.repr)
    _offer(cls, "__init__", _first_init(cls, frozen))
    _offer(cls, "__repr__", lambda self: _described(self, shown))
    if eq:
        _compare(cls, tuple(name for name, each in found.items() if each.compare), frozen)
    if frozen:
        _freeze(cls, frozenset(found))
    return cls


def _declared(cls: Any) -> Iterator[tuple[str, Field]]:
    """The fields that the class itself declares."""
    for name, annotation in cls.__dict__.get("__annotations__", {}).items():
        if isinstance(annotation, str):
            if annotation.startswith(("ClassVar", "typing.ClassVar")):
                continue
        elif annotation is ClassVar or get_origin(annotation) is ClassVar:
            continue
        default = cls.__dict__.get(name, MISSING)
        each = default if isinstance(default, Field) else Field(default, MISSING, True, True, True, None)
        if each.default is not MISSING and type(each.default).__hash__ is None:
            raise ValueError(f"{cls.__name__}.{name}: objects would share this default: use field(default_factory=...)")
        each.name = name
        yield name, each


def _leave_default(cls: Any, each: Field) -> None:
    """A plain default stays an attribute of the class, as without a decorator."""
    if isinstance(cls.__dict__.get(each.name), Field):
        if each.default is MISSING:
            delattr(cls, each.name)
        else:
            setattr(cls, each.name, each.default)


def _offer(cls: Any, name: str, method: Any) -> None:
    """Give the class a method, unless it has its own."""
    if name not in cls.__dict__:
        method.__name__, method.__qualname__, method.__module__ = name, f"{cls.__qualname__}.{name}", cls.__module__
        setattr(cls, name, method)


def _first_init(cls: Any, frozen: bool) -> Callable[..., None]:
    """An `__init__` that puts the real one in its place."""

    def __init__(self: Any, *args: Any, **named: Any) -> None:
        made = _compile_init(cls, frozen)
        cls.__init__ = made
        made(self, *args, **named)

    return __init__


def _compile_init(cls: Any, frozen: bool) -> Any:
    space: dict[str, Any] = {"_MISSING": MISSING, "_set": object.__setattr__}
    parameters, body = ["self"], []
    for name, each in getattr(cls, FIELDS).items():
        value = name
        if not each.init:
            continue
        if each.default_factory is not MISSING:
            space[f"_make_{name}"] = each.default_factory
            parameters.append(f"{name}=_MISSING")
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        elif each.default is not MISSING:
            space[f"_default_{name}"] = each.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        body.append(f"_set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body or ["pass"]), space)
    made = space["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return made


def _described(value: Any, names: tuple[str, ...]) -> str:
    return f"{type(value).__qualname__}({', '.join(f'{name}={getattr(value, name)!r}' for name in names)})"


def _values(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the values of these attributes as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    if names:
        one = attrgetter(names[0])
        return lambda value: (one(value),)
    return lambda value: ()


def _compare(cls: Any, names: tuple[str, ...], frozen: bool) -> None:
    """`==` by the fields of objects of one class; a frozen object has a hash to match, any other none."""
    values = _values(names)

    def __eq__(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    own_hash = cls.__dict__.get("__hash__")  # Python sets it to None where a class defines __eq__ alone.
    _offer(cls, "__eq__", __eq__)
    if own_hash is None:
        cls.__hash__ = (lambda self: hash(values(self))) if frozen else None


def _freeze(cls: Any, names: frozenset[str]) -> None:
    """Refuse changes of fields; a class derived without a decorator may have attributes of its own."""

    def __setattr__(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def __delattr__(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    cls.__setattr__, cls.__delattr__ = __setattr__, __delattr__


def _set_state(value: Any, state: list[Any]) -> None:
    """What `__getstate__` gave goes into a frozen object that is being copied or unpickled."""
    for each, item in zip(fields(value), state, strict=True):
        object.__setattr__(value, each.name, item)


def _with_slots(cls: Any, names: tuple[str, ...], frozen: bool) -> Any:
    """The class once more, with slots: they cannot be given to one that is there already."""
    inherited = {slot for base in cls.__mro__[1:-1] for slot in base.__dict__.get("__slots__", ())}
    body = {name: value for name, value in cls.__dict__.items()
            if name not in names and name not in ("__dict__", "__weakref__")}  # fmt: skip
    body["__slots__"] = tuple(name for name in names if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    if frozen:  # copying would set attributes, which a frozen object refuses
        made.__getstate__ = lambda self: [getattr(self, name) for name in names]
        made.__setstate__ = _set_state
    return made
