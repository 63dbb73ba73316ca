"""From the syntax tree of one native function to LLVM text.

A name bound to a compile-time value stays one as long as the binding does not depend on run-time control
flow; an `if` over compile-time values compiles one side only. Every other local is a stack slot that LLVM
turns into registers. `raise` leaves a flag beside the return value which each caller tests.

The parts, each built on the one before: `emission` (text, names, ways), `expr`, `calls`, `statements`.
"""

from __future__ import annotations

from pellucid.native.emission import Catcher, Loop, Raise, Return
from pellucid.native.program import Instance, Program, result_ir
from pellucid.native.statements import Statements
from pellucid.native.types import NativeType
from pellucid.native.values import Const, Val, Variable, ir_type, is_ptr, name_of

__all__ = ["Catcher", "FunctionLowering", "Loop", "Raise", "Return", "Variable", "lower"]


def lower(program: Program, instance: Instance) -> None:
    """Compile `instance` to text; errors name file, line and column."""
    FunctionLowering(program, instance).run()


class FunctionLowering(Statements):
    """One function being compiled."""

    def run(self) -> None:
        self.node = self.tree
        self._check_signature()
        if self.result is not ...:
            self.instance.result = self.result
        self._bind_parameters()
        self.block(self.tree.body)
        if not self.terminated:
            if self.result is not ... and self.result is not None:
                self.node = self.tree
                self.fail("the end is reached without a result; return one on every way")
            self.give(None)
        if self.raise_label is not None:
            self.label(self.raise_label)
            self.body.append(Raise())
        self._finish()

    def _check_signature(self) -> None:
        args = self.tree.args
        if args.vararg or args.kwarg or args.kwonlyargs or args.posonlyargs:
            self.fail("parameters are plain names; * and / are not in the subset")
        notes = self.instance.fn.fn.__annotations__
        if any(isinstance(note, str) for note in notes.values()):
            self.fail("annotations are evaluated; do not use `from __future__ import annotations` here")
        if self.result is not ... and self.result is not None and not isinstance(self.result, NativeType) \
                and self.result is not bool:
            self.fail(f"the result annotation {self.result!r} is not a native type; write u64, bool, ptr[T], None, ...")
        if len(self.instance.params) != len(args.args):
            self.fail(f"{self.tree.name} takes {len(args.args)} arguments, not {len(self.instance.params)}")
        if self.instance.fn.tail and [is_ptr(p) for p in self.instance.run_time] != [True, True]:
            self.fail("a handler takes two pointers")

    def _bind_parameters(self) -> None:
        i = 0
        for arg, param in zip(self.tree.args.args, self.instance.params, strict=True):
            if isinstance(param, Const):
                self.names[arg.arg] = param
                continue
            wanted = self.instance.fn.fn.__annotations__.get(arg.arg)
            if (isinstance(wanted, NativeType) or wanted is bool) and wanted is not param:
                self.fail(f"{name_of(param)} where {arg.arg!r} is {name_of(wanted)}; give that type")
            if arg.arg in self.bound_once:
                self.names[arg.arg] = Val(param, f"%a{i}")
            else:
                variable = self.names[arg.arg] = self.variable(param)
                self.body.append(f"  store {ir_type(param)} %a{i}, ptr {variable.slot}")
            i += 1

    def _finish(self) -> None:
        instance = self.instance
        instance.result = None if self.result is ... else self.result
        returned = {item.value.memory if isinstance(item.value, Val) else "" for item in self.body
                    if isinstance(item, Return)}
        instance.memory = returned.pop() if len(returned) == 1 and is_ptr(instance.result) else ""
        if instance.raises and instance.fn.tail:
            self.node = self.tree
            self.fail("an exception leaves this handler; catch it inside")
        lines: list[str] = []
        for item in self.body:
            if isinstance(item, Return):
                lines += self._return_text(item)
            elif isinstance(item, Raise):
                lines += self._outcome_text(None)
            else:
                lines.append(item)
        end = self._end_text()
        instance.lines = ["entry:", *self.slots, *lines, *end]
        instance.done = True

    def _return_text(self, item: Return) -> list[str]:
        instance = self.instance
        plain = result_ir(instance.result)
        if plain == "void":
            return ["  ret i1 0" if instance.raises else "  ret void"]
        value, lines = item.value, []
        if isinstance(instance.result, tuple):
            whole = "poison"
            for i, (kind, part) in enumerate(zip(instance.result, value, strict=True)):
                part, name = self.materialize(part, kind), f"%r{self.fresh()}"
                lines.append(f"  {name} = insertvalue {plain} {whole}, {ir_type(kind)} {part.ir}, {i}")
                whole = name
            text = whole
        else:
            text = self.materialize(value, instance.result).ir
        return [*lines, *self._outcome_text(text)] if instance.raises else [*lines, f"  ret {plain} {text}"]

    def _outcome_text(self, value: str | None) -> list[str]:
        """Leave a function that may raise, with a value or, for None, by raising."""
        plain = result_ir(self.instance.result)
        if plain == "void":
            return ["  ret i1 1"]
        stored = [] if value is None else [f"  store {plain} {value}, ptr %outcome"]
        return [*stored, f"  store i1 {int(value is None)}, ptr %raising", "  br label %end"]

    def _end_text(self) -> list[str]:
        """Where all ways out meet, if they give a value and a flag: two values for LLVM, which does not see into a
        pair that several ways lead to, and would have the caller test the flag again.
        """
        instance, plain = self.instance, result_ir(self.instance.result)
        if not instance.raises or plain == "void":
            return []
        self.slots += [f"  %outcome = alloca {plain}", "  %raising = alloca i1"]
        pair = instance.returns
        return ["end:", f"  %given = load {plain}, ptr %outcome", "  %flag = load i1, ptr %raising",
                f"  %half = insertvalue {pair} poison, {plain} %given, 0",
                f"  %pair = insertvalue {pair} %half, i1 %flag, 1", f"  ret {pair} %pair"]
