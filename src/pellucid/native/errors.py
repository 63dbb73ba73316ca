"""Errors of the compiler: each names file, line, column, what is outside the subset, and the remedy."""

from __future__ import annotations

from pellucid.errors import PellucidError


class NativeError(PellucidError):
    """A located compile error: `file:line:column: message; remedy`."""

    def __init__(self, message: str, file: str = "?", line: int = 0, column: int = 0) -> None:
        super().__init__(f"{file}:{line}:{column}: {message}" if line else message)
        self.file, self.line, self.column, self.message = file, line, column, message


class NativeException(Exception):
    """Base of exceptions that native code may raise and catch.

    Native code carries no payload: what happened stands in memory before the `raise`. Only one kind can be
    in flight; `except` names the base that the project uses.
    """
