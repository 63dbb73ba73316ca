"""From a Python function to its syntax tree, with the file's own line numbers."""

from __future__ import annotations

import ast
import functools
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
    import builtins

    names = {**vars(builtins), **fn.__globals__}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ()):
        names[name] = cell.cell_contents
    return names
