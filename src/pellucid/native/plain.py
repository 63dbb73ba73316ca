"""Plain-Python execution that means what the compiler means.

Python alone would let `n: u64 = 0` be an int that never wraps, count `range` in ints, and give `a and b` as
one of its operands. The function's own syntax tree is rewritten where the two differ, and nowhere else:

    n: T = x              the value takes the type T, or is an error
    n = 5                 where n has a native type, the literal takes it
    for i in range(k)     i has the type of the run-time bound, or u64
    a and b, a or b       a bool

Lines and columns stay those of the source, so debuggers and tracebacks show it.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

from pellucid.native.scalars import NativeType, _Int, is_literal, literal, u64
from pellucid.native.source import syntax_tree


def declared(kind: Any, value: Any) -> Any:
    """The value of a declaration `n: kind = value`."""
    return literal(kind, value)


def kept(old: Any, value: Any) -> Any:
    """The value of an assignment: a literal takes the type that the name has."""
    return literal(type(old), value) if isinstance(type(old), NativeType) and is_literal(value) else value


def counted(*bounds: Any) -> Iterator[Any]:
    """`range` over a native integer type."""
    kind = next((type(b) for b in bounds if isinstance(b, _Int)), u64)
    return map(kind, range(*(int(literal(kind, b)) for b in bounds)))


_HELPERS: dict[str, Any] = {"_native_declared": declared, "_native_kept": kept, "_native_counted": counted,
                            "_native_bool": bool}


def rewrite(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with the compiler's meaning; raises NativeError where its source is not to be found."""
    tree = copy.deepcopy(syntax_tree(fn))
    tree.decorator_list = []
    if not _Rewriter().apply(tree):
        return fn
    free = [*fn.__code__.co_freevars, *_HELPERS]
    module = ast.parse(f"def _factory({', '.join(free)}): pass")
    tree.name = "_function"   # not its own name: the factory would bind that, and hide the global from a recursion
    module.body[0].body = [tree]  # type: ignore[attr-defined]
    code = _inner(_inner(compile(module, fn.__code__.co_filename, "exec"), "_factory"), tree.name)
    code = code.replace(co_name=fn.__code__.co_name, co_qualname=fn.__code__.co_qualname)
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    cells |= {name: types.CellType(value) for name, value in _HELPERS.items()}
    return types.FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__,
                              tuple(cells[name] for name in code.co_freevars))


def _inner(code: types.CodeType, name: str) -> types.CodeType:
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


def _call(helper: str, like: ast.AST, *args: ast.expr) -> ast.Call:
    call = ast.Call(ast.Name(f"_native_{helper}", ast.Load()), list(args), [])
    return ast.fix_missing_locations(ast.copy_location(call, like))


class _Rewriter(ast.NodeTransformer):
    """The rewriting of one function; nested scopes (comprehensions) are compile-time and stay."""

    changed = False

    def apply(self, tree: ast.FunctionDef) -> bool:
        counts: dict[str, int] = {a.arg: 1 for a in tree.args.args}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                counts[node.id] = counts.get(node.id, 0) + 1
        self.rebound = {name for name, n in counts.items() if n > 1}
        tree.args.defaults, tree.returns = [], None
        for arg in tree.args.args:
            arg.annotation = None
        tree.body = [part for statement in tree.body for part in self._statement(statement)]
        return self.changed

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        result = self.visit(node)
        return result if isinstance(result, list) else [result]

    def visit_ListComp(self, node: ast.ListComp) -> Any:
        return node

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> Any:
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        self.changed = True
        return _call("bool", node, node)

    def visit_For(self, node: ast.For) -> Any:
        self.generic_visit(node)
        call = node.iter
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range":
            self.changed = True
            node.iter = _call("counted", call, *call.args)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        self.generic_visit(node)
        if node.value is not None and isinstance(node.target, ast.Name):
            self.changed = True
            value = _call("declared", node, node.annotation, node.value)
            return ast.copy_location(ast.Assign([node.target], value), node)
        return node

    def visit_Assign(self, node: ast.Assign) -> Any:
        self.generic_visit(node)
        target = node.targets[0]
        if len(node.targets) > 1:
            return node
        if isinstance(target, ast.Name):
            pairs, values = [(target.id, node.value)], None
        elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            if len(target.elts) != len(node.value.elts):
                return node
            pairs = [(t.id if isinstance(t, ast.Name) else "", v)
                     for t, v in zip(target.elts, node.value.elts, strict=True)]
            values = node.value
        else:
            return node
        reads: list[ast.stmt] = []
        new = [self._kept(name, value, reads, node) for name, value in pairs]
        if not reads:
            return node
        self.changed = True
        if values is None:
            node.value = new[0]
        else:
            values.elts = new
        return [*reads, node]

    def _kept(self, name: str, value: ast.expr, reads: list[ast.stmt], node: ast.stmt) -> ast.expr:
        """`value` typed as the name's old value, where it may be a literal and the name may have an old value."""
        if name not in self.rebound or isinstance(value, (ast.Compare, ast.Tuple, ast.List)):
            return value
        old = f"_native_old_{name}"
        source = (f"try:\n    {old} = {name}\nexcept UnboundLocalError:\n    {old} = None")
        for statement in ast.parse(source).body:
            for part in ast.walk(statement):
                if hasattr(part, "lineno"):
                    ast.copy_location(part, node)
            reads.append(statement)
        return _call("kept", value, ast.Name(old, ast.Load()), value)
