"""A compile worker: LLVM texts come in on standard input, object images go out; one job at a time."""

from __future__ import annotations

import sys

from pellucid.native.target import compile_object


def main() -> None:
    """Serve until the input ends. A job is its length in eight bytes, little endian, and its text."""
    while len(head := sys.stdin.buffer.read(8)) == 8:
        text = sys.stdin.buffer.read(int.from_bytes(head, "little")).decode()
        image = compile_object(text)
        sys.stdout.buffer.write(len(image).to_bytes(8, "little") + image)
        sys.stdout.buffer.flush()
