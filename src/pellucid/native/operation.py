"""What an intrinsic is, and the checks of its operands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from pellucid.native.arith import Emitter
from pellucid.native.types import NativeType
from pellucid.native.values import Const, Val, is_ptr, name_of

if TYPE_CHECKING:
    from pellucid.native.program import Instance


class Lowering(Emitter, Protocol):
    """What an intrinsic's lowering needs of the function being compiled."""

    instance: Instance
    slots: list[str]
    body: list[Any]
    terminated: bool

    def effect(self, text: str) -> None: ...
    def fresh(self) -> int: ...
    def materialize(self, value: Any, kind: Any) -> Val: ...
    def index(self, index: Any) -> str: ...
    def reached(self, memory: str) -> str: ...
    def lane(self, kind: Any, index: Any) -> str: ...
    def size_of(self, kind: Any) -> int: ...


class Intrinsic:
    """A named operation: called from Python it runs `python`; compiled, `lowering(function, *values)`."""

    def __init__(self, python: Callable[..., Any], lowering: Callable[..., Any]) -> None:
        self.python, self.lowering = python, lowering
        self.__name__, self.__doc__ = python.__name__, python.__doc__

    @cached_property
    def signature(self) -> inspect.Signature:
        """The parameters, for the compiler's check of a call."""
        return inspect.signature(self.python)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.python(*args, **named)

    def lower(self, f: Lowering, *args: Any, **named: Any) -> Any:
        return self.lowering(f, *args, **named)


def intrinsic(lowering: Callable[..., Any]) -> Callable[[Callable[..., Any]], Intrinsic]:
    return lambda python: Intrinsic(python, lowering)


def typed(f: Lowering, a: Any) -> Val:
    """A value that has a native type: one known at run time, or a typed constant."""
    if isinstance(a, Const):
        if not isinstance(type(a.value), NativeType):
            f.fail(f"the literal {a.value!r} has no type here; write u64({a.value!r})")
        return f.materialize(a, type(a.value))
    assert isinstance(a, Val)
    return a


def pointer(f: Lowering, p: Any) -> Val:
    """A pointer operand."""
    value = typed(f, p)
    if not is_ptr(value.type):
        f.fail(f"a pointer is needed, not {name_of(value.type)}; write ptr[T](address)")
    return value


def static_kind(f: Lowering, kind: Any) -> Any:
    """A type given as an argument."""
    if not isinstance(kind, Const) or kind.value is not bool and not isinstance(kind.value, NativeType):
        f.fail("a type is needed here, e.g. u64")
    return kind.value
