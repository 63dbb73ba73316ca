"""`@dataclass` and what belongs to it: the standard library's, for all that a type checker or a reader sees.

A start makes some two hundred classes of this kind. `dataclasses` writes and compiles up to six methods for each,
whether they are called or not, which was a quarter of a start; `classes` compiles `__init__` alone, when the first
object is made. What is not used in this tree is not there: `order`, `kw_only`, `InitVar` and `unsafe_hash`,
and a factory with `init=False`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import (
        MISSING,
        Field,
        FrozenInstanceError,
        asdict,
        astuple,
        dataclass,
        field,
        fields,
        is_dataclass,
        replace,
    )
else:
    from pellucid.records.classes import (
        MISSING,
        Field,
        FrozenInstanceError,
        asdict,
        astuple,
        dataclass,
        field,
        fields,
        is_dataclass,
        replace,
    )

__all__ = [
    "MISSING",
    "Field",
    "FrozenInstanceError",
    "asdict",
    "astuple",
    "dataclass",
    "field",
    "fields",
    "is_dataclass",
    "replace",
]
