"""The specializations of native functions that a set of roots needs, and their LLVM text.

An `Instance` is one function with its argument types and compile-time arguments fixed. Inline instances are
repeated in every module that uses them; the others stand in one module and are declared in the rest. Their symbols
say what they are, not when they were asked for: code that is compiled later, by another process, links to them.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Container, Iterable
from typing import Any

from pellucid.native.aliasing import METADATA
from pellucid.native.errors import NativeError
from pellucid.native.function import NativeFunction
from pellucid.native.values import Const, ir_type
from pellucid.records import dataclass, field, fields, is_dataclass


@dataclass(eq=False, slots=True)
class Instance:
    """One specialization: its symbol, signature and text; `raises` when a NativeException may leave it."""

    symbol: str
    fn: NativeFunction
    params: tuple[Any, ...]
    result: Any = None
    memory: str = ""                # what its result, a pointer, reaches: see `aliasing`
    raises: bool = False
    done: bool = False
    touches_registers: bool = False   # by itself, not by what it calls
    lines: list[str] = field(default_factory=list)
    calls: dict[Instance, None] = field(default_factory=dict)
    declares: set[str] = field(default_factory=set)
    kinds: set[type] = field(default_factory=set)   # the exceptions that may leave it

    @property
    def run_time(self) -> list[Any]:
        """The types of the parameters that exist at run time."""
        return [p for p in self.params if not isinstance(p, Const)]

    @property
    def returns(self) -> str:
        """LLVM's return type, with the raise flag beside the value where there is one."""
        plain = result_ir(self.result)
        if not self.raises:
            return plain
        return "i1" if plain == "void" else f"{{ {plain}, i1 }}"

    @property
    def convention(self) -> str:
        return "tailcc " if self.fn.tail else ""

    def inline(self, inlined: Container[NativeFunction]) -> bool:
        """Whether its callers contain it: those in `inlined` do so though they are out of line elsewhere."""
        return (self.fn.inline or self.fn in inlined) and not self.fn.tail

    def declaration(self) -> str:
        args = ", ".join(ir_type(t) for t in self.run_time)
        return f'declare dso_local {self.convention}{self.returns} @"{self.symbol}"({args}) nounwind'


def result_ir(result: Any) -> str:
    if isinstance(result, tuple):
        return "{ " + ", ".join(ir_type(t) for t in result) + " }"
    return ir_type(result)


class Program:
    """All instances, compiled to text on first request. `inlined`: functions that are out of line elsewhere.

    `region`: its code is for regions, where steady fields keep their values.
    """

    def __init__(self, inlined: Iterable[NativeFunction] = (), *, region: bool = False) -> None:
        self.inlined = frozenset(inlined)
        self.region = region
        self.instances: dict[Any, Instance] = {}
        self._symbols: set[str] = set()

    def request(self, fn: NativeFunction, params: tuple[Any, ...]) -> Instance:
        """The instance of `fn` for these parameters (types, or `Const` for compile-time ones)."""
        key = (fn, tuple(_key(p) for p in params))
        found = self.instances.get(key)
        if found is None:
            found = self.instances[key] = Instance(self._symbol(fn, params), fn, params)
            from pellucid.native.lower import lower

            try:
                lower(self, found)
            except BaseException:
                del self.instances[key]
                raise
            if fn.spares_registers:
                _check_spared(found)
        return found

    def _symbol(self, fn: NativeFunction, params: tuple[Any, ...]) -> str:
        words = [fn.__module__.removeprefix("pellucid."), fn.__qualname__]
        words += [_word(p.value) for p in params if isinstance(p, Const)]
        types = [_word(p) for p in params if not isinstance(p, Const)]
        base = re.sub(r"[^A-Za-z0-9_.<>-]", "_", ".".join(words) + ("(" + ",".join(types) + ")" if types else ""))
        if not fn.inline and not fn.tail:
            base += _digest([p.value for p in params if isinstance(p, Const)])
        name, n = base, 1
        while name in self._symbols:
            n += 1
            name = f"{base}~{n}"
        self._symbols.add(name)
        return name

    def module(self, roots: Iterable[Instance], owned: set[Instance] | None = None) -> str:
        """LLVM text that defines `roots` and `owned`, with what they inline; everything else is declared."""
        roots = list(roots)
        defined: dict[Instance, bool] = dict.fromkeys(roots, True) | dict.fromkeys(owned or (), True)
        declared: dict[Instance, None] = {}
        work = list(defined)
        while work:
            for callee in work.pop().calls:
                if callee in defined:
                    continue
                if callee.inline(self.inlined):
                    defined[callee] = False
                    work.append(callee)
                else:
                    declared[callee] = None
        text, intrinsics = [], set()
        for instance, exported in defined.items():
            text += _definition(instance, exported)
            intrinsics |= instance.declares
        head = sorted(intrinsics) + [i.declaration() for i in declared]
        return "\n".join([*head, *text, '!0 = !{!"branch_weights", i32 4000, i32 1}', METADATA, ""])

    def support(self, caller: Instance) -> str:
        """What a hand-made function that makes `caller.calls` needs: inlined definitions, declarations, metadata.

        What is declared stands in an image made from another Program: NativeError where its symbol is not unique.
        """
        for callee in out_of_line([caller], self.inlined):
            if "~" in callee.symbol and not callee.fn.tail:
                raise NativeError(f"{callee.symbol} has no name of its own that another image could link to")
        return self.module([caller]).replace("\n".join(_definition(caller, True)), "")


def _check_spared(instance: Instance) -> None:
    """NativeError when what promises to spare registers reaches one."""
    for reached in [instance, *out_of_line([instance], everything=True)]:
        if reached.touches_registers:
            code = reached.fn.fn.__code__
            raise NativeError(f"{instance.fn.__name__} spares registers, and {reached.fn.__name__}, which it calls, "
                              "reaches one", code.co_filename, code.co_firstlineno, 1)


def _definition(instance: Instance, exported: bool) -> list[str]:
    args = ", ".join(f"{ir_type(t)} %a{i}" for i, t in enumerate(instance.run_time))
    linkage, attribute = ("dso_local ", "") if exported else ("internal ", " alwaysinline")
    name = f'{instance.convention}{instance.returns} @"{instance.symbol}"'
    head = f"define {linkage}{name}({args}){attribute} nounwind {{"
    return [head, *instance.lines, "}"]


def out_of_line(instances: Iterable[Instance], inlined: Container[NativeFunction] = (), *,
                everything: bool = False) -> list[Instance]:
    """Every non-inline (or every) instance reachable from these, themselves excluded, in a stable order."""
    seen: dict[Instance, None] = dict.fromkeys(instances)
    work, found = list(seen), []
    while work:
        for callee in work.pop().calls:
            if callee not in seen:
                seen[callee] = None
                work.append(callee)
                if everything or not callee.inline(inlined):
                    found.append(callee)
    return sorted(found, key=lambda i: i.symbol)


def _key(param: Any) -> Any:
    if not isinstance(param, Const):
        return param
    value = param.value
    if isinstance(value, float):
        return ("float", type(value), value.hex())   # 0.0 and -0.0 are equal, and NaN is not
    try:
        hash(value)
    except TypeError:
        return ("id", id(value))
    return ("const", type(value), value)


def _digest(consts: list[Any]) -> str:
    """A suffix that tells compile-time values apart where their words do not: those with parts, and odd types."""
    spelled = [_spelling(value) for value in consts if not isinstance(value, NativeFunction)]
    if not any("(" in text for text in spelled):
        return ""
    return "." + hashlib.sha256(repr(spelled).encode()).hexdigest()[:12]


def _spelling(value: Any) -> str:
    """A compile-time value in words that every process finds for it."""
    if value is None or type(value) in (bool, int, str):
        return repr(value) if "(" not in str(value) else f"({value!r})"
    if isinstance(value, (NativeFunction, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum):
        return str(value)
    if is_dataclass(value):
        return f"{type(value).__qualname__}({', '.join(_spelling(getattr(value, f.name)) for f in fields(value))})"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_spelling, value))})"
    return f"({type(value).__qualname__}: {_word(value)})"


def _word(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (NativeFunction, type)):
        return value.__name__
    if isinstance(value, (int, str, bool)) or value is None:
        return str(value)
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)
