"""What `@struct` gives a class, as type checkers see it: they do not follow a class decorator's result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pellucid.native.structs import Field

    class _Layout(type):
        size: int
        align: int
        fields: dict[str, Field]

        def view(cls, addr: int) -> Any: ...

    class Struct(metaclass=_Layout):
        """Base of struct classes while types are checked; at run time the decorator makes a class of its own."""
else:
    Struct = object
