"""`@native`: a Python function that can also be compiled.

Called from Python it runs as plain Python on the wrapping types of `types.py` (the reference executor).
The compiler specializes it on its arguments: a parameter without annotation takes the type of a run-time
argument, or becomes a constant where the argument is known at compile time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pellucid.native.types import NativeType


class NativeFunction:
    """A function of the native subset; `inline=False` keeps it out of line, `tail=True` makes it a handler.

    A handler takes two pointers, returns nothing, uses LLVM's `tailcc` convention and may end in `tail(...)`.
    """

    def __init__(self, fn: Callable[..., Any], inline: bool, tail: bool) -> None:
        self.fn = fn
        self.inline = inline
        self.tail = tail
        functools.update_wrapper(self, fn)
        self._annotated = {k: v for k, v in getattr(fn, "__annotations__", {}).items() if isinstance(v, NativeType)}
        self._names = fn.__code__.co_varnames[: fn.__code__.co_argcount]

    def __call__(self, *args: Any) -> Any:
        if self._annotated:
            args = tuple(self._typed(name, value) for name, value in zip(self._names, args))
        result = self.fn(*args)
        wanted = self._annotated.get("return")
        return wanted(result) if wanted is not None and type(result) in (int, float) else result

    def _typed(self, name: str, value: Any) -> Any:
        wanted = self._annotated.get(name)
        return wanted(value) if wanted is not None and type(value) in (int, float) else value

    def __repr__(self) -> str:
        return f"<native {self.fn.__module__}.{self.fn.__qualname__}>"


def native(fn: Any = None, *, inline: bool = True, tail: bool = False) -> Any:
    """Decorator: `@native`, `@native(inline=False)`, `@native(tail=True)`."""
    if fn is None:
        return lambda f: NativeFunction(f, inline, tail)
    return NativeFunction(fn, inline, tail)
