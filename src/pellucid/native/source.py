"""From a Python function to its syntax tree, with the file's own line numbers."""

from __future__ import annotations

import ast
import builtins
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pellucid.native.errors import NativeError


@functools.cache
def _functions(file: str) -> dict[tuple[str, int], ast.FunctionDef]:
    found = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"), file)):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name, first] = node
    return found


def syntax_tree(fn: Callable[..., Any]) -> ast.FunctionDef:
    """The definition of `fn` in its source file."""
    code = fn.__code__
    try:
        return _functions(code.co_filename)[code.co_name, code.co_firstlineno]
    except (KeyError, OSError):
        raise NativeError(f"the source of {code.co_name} is not to be found; define it in a file with def",
                          code.co_filename, code.co_firstlineno, 0) from None


def environment(fn: Callable[..., Any]) -> dict[str, Any]:
    """The names that `fn` sees besides its own: builtins, globals, then the enclosing function's."""
    names = {**vars(builtins), **fn.__globals__}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            names[name] = cell.cell_contents
        except ValueError:  # not bound yet in the enclosing function
            names.pop(name, None)
    return names


@functools.cache
def bound_once(tree: ast.FunctionDef) -> set[str]:
    """Names that have one value in a call: parameters that nothing binds again, and what one statement of the body
    itself binds, outside of any loop or branch.
    """
    def stores(node: ast.AST) -> list[str]:
        return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]

    count = Counter([*(a.arg for a in tree.args.args), *stores(tree)])
    body = [name for statement in tree.body if isinstance(statement, ast.Assign) for name in stores(statement)]
    return {name for name in [*(a.arg for a in tree.args.args), *body] if count[name] == 1}


@functools.cache
def own_names(tree: ast.FunctionDef) -> set[str]:
    """The names that are the function's own because it binds them; as in Python they hide globals everywhere."""
    found = {a.arg for a in tree.args.args}
    work: list[ast.AST] = list(tree.body)
    while work:
        node = work.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if not isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            work += ast.iter_child_nodes(node)
    return found
