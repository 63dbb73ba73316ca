"""`@native`: a Python function that can also be compiled.

Called from Python it runs as plain Python on the wrapping types of `types.py` (the reference executor).
The compiler specializes it on its arguments: a parameter without annotation takes the type of a run-time
argument, or becomes a constant where the argument is known at compile time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pellucid.native.intrinsics import frames
from pellucid.native.plain import rewrite
from pellucid.native.types import NativeType, is_literal, literal


class NativeFunction:
    """A function of the native subset; `inline=False` keeps it out of line, `tail=True` makes it a handler.

    `spares_registers=True`: neither it nor what it calls touches a field that a struct declares as a register.
    A handler takes two pointers, returns nothing, uses LLVM's `tailcc` convention and may end in `tail(...)`.
    """

    __name__: str
    __qualname__: str

    def __init__(self, fn: Callable[..., Any], inline: bool, tail: bool, spares_registers: bool = False) -> None:
        self.fn = fn
        self.spares_registers = spares_registers
        self.inline = inline
        self.tail = tail
        functools.update_wrapper(self, fn)
        notes = getattr(fn, "__annotations__", {})
        self._annotated = {k: v for k, v in notes.items() if isinstance(v, NativeType) or v is bool}
        self._result = self._annotated.pop("return", None)
        code = fn.__code__
        self._names = code.co_varnames[: code.co_argcount]
        self._defaults = dict(zip(self._names[::-1], (fn.__defaults__ or ())[::-1], strict=False))

    @functools.cached_property
    def plain(self) -> Callable[..., Any]:
        """What a call from Python runs."""
        return rewrite(self.fn)

    def __call__(self, *args: Any, **named: Any) -> Any:
        if named or len(args) != len(self._names):
            args = self._bound(args, named)
        if self._annotated:
            args = tuple(self._typed(name, value) for name, value in zip(self._names, args, strict=True))
        mark = frames.enter()
        try:
            result = self.plain(*args)
        finally:
            frames.leave(mark)
        return result if self._result is None else literal(self._result, result)

    def _bound(self, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """The arguments in order, keywords and defaults filled in."""
        rest = self._names[len(args):]
        filled = {n: named[n] if n in named else self._defaults[n] for n in rest if n in named or n in self._defaults}
        if len(filled) != len(rest) or len(args) > len(self._names) or any(n not in rest for n in named):
            raise TypeError(f"{self.__name__} takes {len(self._names)} arguments: {', '.join(self._names)}")
        return (*args, *(filled[n] for n in rest))

    def _typed(self, name: str, value: Any) -> Any:
        """An argument as the parameter's annotation has it: a literal takes the type, another type is an error."""
        wanted = self._annotated.get(name)
        if wanted is None or type(value) is wanted:
            return value
        if is_literal(value) and not isinstance(value, bool) and hasattr(wanted, "target"):
            return wanted(value)   # an address, as ctypes callers of compiled code give it
        return literal(wanted, value)

    def __repr__(self) -> str:
        return f"<native {self.fn.__module__}.{self.fn.__qualname__}>"


def native(fn: Any = None, *, inline: bool = True, tail: bool = False, spares_registers: bool = False) -> Any:
    """Decorator: `@native`, `@native(inline=False)`, `@native(tail=True)`."""
    if fn is None:
        return lambda f: NativeFunction(f, inline, tail, spares_registers)
    return NativeFunction(fn, inline, tail)
