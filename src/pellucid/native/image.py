"""A compiled image: many root functions, compiled in parts by several processes, cached, linked in milliseconds.

Two keys find cached work: the whole image by its sources (a start with warm cache hashes a few dozen files),
each part by its LLVM text (an edit compiles only the parts that it changed).
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pellucid.native import cache
from pellucid.native.code import Code, Layout
from pellucid.native.errors import NativeError
from pellucid.native.function import NativeFunction
from pellucid.native.host import fingerprint
from pellucid.native.program import Instance, Program, out_of_line
from pellucid.native.values import Const

Root = tuple[NativeFunction, tuple[Any, ...]]
Progress = Callable[[str, int, int], None]
PART = 48


class Image:
    """Addresses of the roots, by name, in this process. `roots`: the symbol of each."""

    def __init__(self, roots: Mapping[str, str], layout: Layout) -> None:
        self.code = Code(layout)
        self.address: dict[str, int] = {name: self.code[symbol] for name, symbol in roots.items()}
        self.size = len(layout.code)

    def function(self, name: str, result: Any, *args: Any) -> Any:
        """The root as a ctypes callable; it runs with the GIL released, and keeps the image alive."""
        function = ctypes.CFUNCTYPE(result, *args)(self.address[name])
        function.image = self  # type: ignore[attr-defined]
        return function


def source_key(packages: Iterable[Path]) -> str:
    """A key over every Python source below these folders, the compiler itself and its target."""
    parts: list[str | bytes] = [fingerprint()]
    for package in dict.fromkeys([Path(__file__).parent, *packages]):
        for path in sorted(package.rglob("*.py")):
            parts += [str(path.relative_to(package)), path.read_bytes()]
    return cache.key(*parts)


def load_or_build(name: str, roots: Callable[[], Mapping[str, Root]], packages: Iterable[Path],
                  progress: Progress | None = None) -> Image:
    """The image of `roots()`; compiled when no cached one matches the sources under `packages`."""
    key = f"{name}-{source_key(packages)}"
    stored = cache.get("images", key)
    if stored is not None:
        return Image(*_unpack(stored))
    names, layout = build(roots(), progress)
    if key == f"{name}-{source_key(packages)}":  # else the sources changed while we compiled
        cache.put("images", key, _pack(names, layout))
    return Image(names, layout)


def is_built(name: str, packages: Iterable[Path]) -> bool:
    """Whether a start would find its image compiled."""
    return cache.get("images", f"{name}-{source_key(packages)}") is not None


def build(roots: Mapping[str, Root], progress: Progress | None = None) -> tuple[dict[str, str], Layout]:
    """Compile every root: the symbol of each, in order, and the linked code."""
    from pellucid.native.linker import lay_out  # with a library that a start from the cache does without

    tell = progress or (lambda what, done, total: None)
    program, instances = Program(), {}
    with _deep_recursion():
        for i, (name, (fn, params)) in enumerate(roots.items()):
            instances[name] = program.request(fn, tuple(params))
            if i % 64 == 0:
                tell("translating", i, len(roots))
    objects = _compile(_parts(program, list(dict.fromkeys(instances.values()))), tell)
    return {name: instance.symbol for name, instance in instances.items()}, lay_out(objects)


@contextmanager
def _deep_recursion() -> Iterator[None]:
    """A call in native code is some twenty Python frames here, and functions call each other a hundred deep."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def constant(value: Any) -> Const:
    """A compile-time parameter of a root."""
    return Const(value)


def _parts(program: Program, roots: list[Instance]) -> list[str]:
    everything = roots + [i for i in out_of_line(roots) if i not in set(roots)]
    groups: dict[str, list[Instance]] = {}
    for instance in everything:
        groups.setdefault(instance.fn.__module__, []).append(instance)
    texts = []
    for members in groups.values():
        for start in range(0, len(members), PART):
            texts.append(program.module(members[start:start + PART]))
    return texts


def _compile(texts: list[str], tell: Progress) -> list[bytes]:
    mark = fingerprint()
    keys = [cache.key(mark, text) for text in texts]
    found: dict[str, bytes] = {}
    for k in keys:
        stored = cache.get("objects", k)
        if stored is not None:
            found[k] = stored
    missing = {k: text for k, text in zip(keys, texts) if k not in found}
    for done, (k, image) in enumerate(_workers(missing), len(found) + 1):
        found[k] = image
        cache.put("objects", k, image)
        tell("compiling", done, len(keys))
    return [found[k] for k in keys]


def _workers(missing: dict[str, str]) -> Iterable[tuple[str, bytes]]:
    """Compile in as many processes as there are cores: llvmlite holds one lock per process."""
    if not missing:
        return
    count = min(len(os.sched_getaffinity(0)), len(missing))
    jobs = sorted(missing.items(), key=lambda item: -len(item[1]))
    command = [sys.executable, "-c", "from pellucid.native.worker import main; main()"]
    paths = os.pathsep.join(p for p in sys.path if p)
    running: list[_Worker] = []
    try:
        for i in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env={**os.environ, "PYTHONPATH": paths})
            running.append(_Worker(process, jobs[i::count]))
        yield from _drive(running)
    finally:
        for worker in running:
            worker.stop()


class _Worker:
    """A compile process and what it has left to do; one job at a time, so that no pipe fills while both write."""

    def __init__(self, process: subprocess.Popen[bytes], jobs: list[tuple[str, str]]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.process, self.input, self.output = process, process.stdin, process.stdout
        self.jobs, self.current = iter(jobs), ""

    def start_next(self) -> bool:
        """Send the next job; False when there is none."""
        job = next(self.jobs, None)
        if job is None:
            return False
        self.current, raw = job[0], job[1].encode()
        try:
            self.input.write(len(raw).to_bytes(8, "little") + raw)
            self.input.flush()
        except BrokenPipeError:
            pass  # it has stopped: the read that follows finds the end, and says so
        return True

    def result(self) -> bytes:
        size = self.output.read(8)
        image = self.output.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
        if not image:
            raise NativeError(f"the compile worker stopped with status {self.process.wait()}; its words are above")
        return image

    def stop(self) -> None:
        """Let it end: its input is closed. One that is still at work for a build that failed is ended."""
        self.process.kill() if self.current else None
        for pipe in (self.input, self.output):
            try:
                pipe.close()
            except OSError:
                pass  # what was still to be written has no reader
        self.process.wait()


def _drive(running: list[_Worker]) -> Iterable[tuple[str, bytes]]:
    selector = selectors.DefaultSelector()
    with selector:
        for worker in running:
            worker.start_next()
            selector.register(worker.output, selectors.EVENT_READ, worker)
        while selector.get_map():
            for entry, _ in selector.select():
                worker = entry.data
                image, name = worker.result(), worker.current
                worker.current = ""
                if not worker.start_next():
                    selector.unregister(worker.output)
                yield name, image


def _pack(roots: Mapping[str, str], layout: Layout) -> bytes:
    head = json.dumps([roots, layout.symbols, layout.imports]).encode()
    return len(head).to_bytes(8, "little") + head + layout.code


def _unpack(raw: bytes) -> tuple[dict[str, str], Layout]:
    size = int.from_bytes(raw[:8], "little")
    roots, symbols, imports = json.loads(raw[8:8 + size])
    return roots, Layout(raw[8 + size:], symbols, imports)
