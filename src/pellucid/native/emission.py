"""What expressions and statements are made of: LLVM text, labels, variables, names and where a raise goes."""

from __future__ import annotations

import ast
from typing import Any, NoReturn

from pellucid.native.errors import NativeError
from pellucid.native.program import Instance, Program
from pellucid.native.source import bound_once, environment, own_names, syntax_tree
from pellucid.native.values import Binding, Const, Unknown, Val, Variable, ir_type
from pellucid.records import dataclass, field

Names = dict[str, Binding]


@dataclass(slots=True)
class Loop:
    """A loop being compiled: where `continue` and `break` go, and the names as each of them leaves."""

    again: str
    after: str
    entry: Names | None                  # names at the head of a run-time loop; None for an unrolled one
    continues: list[Names] = field(default_factory=list)
    breaks: list[Names] = field(default_factory=list)
    read: set[str] = field(default_factory=set)   # names whose compile-time value from before the loop was used


@dataclass(slots=True)
class Catcher:
    """A `try` being compiled: where a raise goes, the names as each one leaves, and what may be raised."""

    label: str
    states: list[Names] = field(default_factory=list)
    kinds: set[type] = field(default_factory=set)


class Return:
    """A `ret` whose final text waits for the function's result type."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Raise:
    """A return with the raise flag set."""


class Emission:
    """The text of one function as it grows."""

    def __init__(self, program: Program, instance: Instance) -> None:
        self.program, self.instance = program, instance
        self.file = instance.fn.fn.__code__.co_filename
        self.node: ast.AST = ast.Pass(lineno=instance.fn.fn.__code__.co_firstlineno, col_offset=0)
        self.tree = syntax_tree(instance.fn.fn)
        self.environment = environment(instance.fn.fn)
        self.own_names = own_names(self.tree)
        self.bound_once = bound_once(self.tree)
        self.names: Names = {}
        self.body: list[str | Return | Raise] = []
        self.slots: list[str] = []
        self.counter = 0
        self.terminated = False
        self.loops: list[Loop] = []
        self.catchers: list[Catcher] = []
        self.caught: list[set[type]] = []
        self.raise_label: str | None = None
        self.result: Any = instance.fn.fn.__annotations__.get("return", ...)

    def fail(self, message: str) -> NoReturn:
        raise NativeError(message, self.file, getattr(self.node, "lineno", 0), getattr(self.node, "col_offset", 0) + 1)

    # --- text ------------------------------------------------------------------------------------------

    def fresh(self) -> int:
        self.counter += 1
        return self.counter

    def emit(self, kind: Any, text: str) -> Val:
        name = f"%v{self.fresh()}"
        self.body.append(f"  {name} = {text}")
        if " @llvm." in text:
            self._declare_intrinsic(text)
        return Val(kind, name)

    def effect(self, text: str) -> None:
        self.body.append(f"  {text}")
        if " @llvm." in text:
            self._declare_intrinsic(text)

    def _declare_intrinsic(self, text: str) -> None:
        head, _, rest = text.partition("call ")[2].partition("(")
        kinds = ", ".join(_argument_types(rest.rsplit(")", 1)[0]))
        self.instance.declares.add(f"declare {head}({kinds})")

    def new_label(self, word: str) -> str:
        return f"{word}{self.fresh()}"

    def label(self, name: str) -> None:
        self.body.append(f"{name}:")
        self.terminated = False

    def jump(self, label: str) -> None:
        if not self.terminated:
            self.body.append(f"  br label %{label}")
            self.terminated = True

    def branch(self, condition: Val, yes: str, no: str, *, unlikely: bool = False) -> None:
        weights = ""
        if unlikely:
            yes, no = no, yes
            condition = self.emit(bool, f"xor i1 {condition.ir}, 1")
            weights = ", !prof !0"
        self.body.append(f"  br i1 {condition.ir}, label %{yes}, label %{no}{weights}")
        self.terminated = True

    def variable(self, kind: Any) -> Variable:
        slot = f"%s{self.fresh()}"
        self.slots += [f"  {slot} = alloca {ir_type(kind)}", f"  store {ir_type(kind)} zeroinitializer, ptr {slot}"]
        return Variable(kind, slot)

    # --- names and the ways that lead to a place --------------------------------------------------------

    def note_read(self, name: str, value: Const) -> None:
        """Remember that a loop's body uses what the name was before the loop."""
        for loop in self.loops:
            if loop.entry is not None and loop.entry.get(name) is value:
                loop.read.add(name)

    def join(self, states: list[Names]) -> Names:
        """The names where several ways meet: what all agree on; a variable bound on some ways stays."""
        if len(states) == 1:
            return dict(states[0])
        joined: Names = {}
        for name in dict.fromkeys(n for state in states for n in state):
            found = [state.get(name) for state in states]
            bound = [f for f in found if f is not None]
            if all(_same(bound[0], f) for f in bound) and (len(bound) == len(found) or isinstance(bound[0], Variable)):
                joined[name] = next((f for f in bound if self._from_before(name, f)), bound[0])
            else:
                joined[name] = next((f for f in bound if isinstance(f, Unknown)), Unknown(_reason(name, found)))
        return joined

    def _from_before(self, name: str, value: Binding) -> bool:
        return any(loop.entry is not None and loop.entry.get(name) is value for loop in self.loops)

    def variables_of(self, state: Names, known: Names) -> Names:
        """`known` and the variables that `state` adds: a slot is shared by all ways of a function."""
        return known | {n: v for n, v in state.items() if n not in known and isinstance(v, Variable)}

    def check_loop(self, loop: Loop, end: Names, node: ast.stmt) -> None:
        """A run-time loop's next turn finds its compile-time names as the first turn did, or does not use them."""
        assert loop.entry is not None
        for name, old in loop.entry.items():
            new = end.get(name)
            if new is not None and _same(old, new) or isinstance(old, Unknown):
                continue
            if isinstance(old, Variable) or name in loop.read:
                self.node = node
                self.fail(_reason(name, [old, new]))

    # --- exceptions ------------------------------------------------------------------------------------

    def raise_target(self, kinds: set[type]) -> str:
        """Where a raise inside this point goes: the innermost `except`, or out of the function."""
        if self.catchers:
            catcher = self.catchers[-1]
            catcher.states.append(dict(self.names))
            catcher.kinds |= kinds
            return catcher.label
        self.instance.raises = True
        self.instance.kinds |= kinds
        if self.raise_label is None:
            self.raise_label = self.new_label("raised")
        return self.raise_label


def _same(a: Binding, b: Binding) -> bool:
    """Whether a name means the same on two ways."""
    if a is b:
        return True
    if not isinstance(a, Const) or not isinstance(b, Const):
        return a == b
    try:
        return a.value is b.value or type(a.value) is type(b.value) and bool(a.value == b.value)
    except Exception:  # an object that does not compare is taken as another
        return False


def _reason(name: str, found: list[Binding | None]) -> str:
    if any(isinstance(f, Const) for f in found):
        what = "changes" if all(isinstance(f, (Const, Unknown)) for f in found) else \
            "is bound on some of the ways that lead here" if None in found else "gets a run-time value"
        return (f"{name!r} is known at compile time and {what} under a run-time condition; "
                f"give it a type where it is first assigned: {name}: u64 = ...")
    return f"{name!r} changes its type under a run-time condition; use another name for the other type"


def _argument_types(text: str) -> list[str]:
    """The types in `i64 %a, <4 x i32> %b, i1 0`: every argument less its last word."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "<{[(") - (c in ">}])")
        if c == "," and not depth:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [_type_of_argument(p.strip()) for p in parts if p.strip()]


def _type_of_argument(text: str) -> str:
    if text.startswith(("<", "{")):
        close = text.index(">" if text[0] == "<" else "}")
        return text[: close + 1]
    return text.split()[0]
