"""Lists of buffers, as preadv and pwritev take them: pieces of guest RAM that make up one request, in order."""

from collections.abc import Iterator, Sequence

Buffers = Sequence[memoryview]
"""Writable or readable views of bytes (format "B"); none of them is empty."""

ZEROES = memoryview(bytes(64 << 10))


def total(buffers: Buffers) -> int:
    """Bytes in all of them."""
    return sum(map(len, buffers))


def part(buffers: Buffers, start: int, length: int) -> list[memoryview]:
    """The `length` bytes from `start` on, as views of the same memory."""
    found = []
    for view in buffers:
        if length <= 0:
            break
        size = len(view)
        if start >= size:
            start -= size
            continue
        piece = view[start : start + length]
        found.append(piece)
        length -= len(piece)
        start = 0
    return found


def batches(buffers: Buffers, most: int) -> Iterator[Buffers]:
    """Slices of the list with at most `most` buffers each."""
    for start in range(0, len(buffers), most):
        yield buffers[start : start + most]


def fill_zero(buffers: Buffers) -> None:
    """Make every byte zero."""
    for view in buffers:
        for at in range(0, len(view), len(ZEROES)):
            piece = view[at : at + len(ZEROES)]
            piece[:] = ZEROES[: len(piece)]


def zeroes(length: int) -> list[memoryview]:
    """Read-only buffers of `length` zero bytes; they share their memory."""
    whole, rest = divmod(length, len(ZEROES))
    return [ZEROES] * whole + ([ZEROES[:rest]] if rest else [])
