"""Images: compiled once, found again; an edit compiles what it changed; a failing worker is an error with words."""

import ctypes
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from pellucid.native import NativeError, cache, image, native, u64
from pellucid.native.image import Image, build, constant, is_built, load_or_build, source_key

SOURCE = """
from pellucid.native import native, u64

@native(inline=False)
def shared(a: u64) -> u64:
    return a + {shared}

@native
def small(a: u64) -> u64:
    return shared(a) * {small}

@native
def large(a: u64) -> u64:
    t = a
    for i in range(a):
        t = t * 3 + shared(i)
    return t
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that workers get to compile."""
    texts: list[str] = []
    workers = image._workers

    def counted(missing: dict[str, str]) -> Any:
        texts.extend(missing.values())
        return workers(missing)

    monkeypatch.setattr(image, "_workers", counted)
    return texts


def module(folder: Path, **numbers: int) -> Any:
    """The source above as a fresh module."""
    number = len(list(folder.glob("m*.py")))
    path = folder / f"m{number}.py"
    path.write_text(SOURCE.format(**numbers), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("edited", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = made
    spec.loader.exec_module(made)
    return made


def roots(m: Any) -> dict[str, Any]:
    return {"small": (m.small, (u64,)), "large": (m.large, (u64,))}


def call(made: Image, name: str, a: int) -> int:
    return int(made.function(name, ctypes.c_uint64, ctypes.c_uint64)(a))


def test_the_second_build_compiles_nothing(folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "PART", 1)
    m = module(folder, shared=1, small=2)
    first = build(roots(m))
    assert len(compiled) == 3
    assert build(roots(module(folder, shared=1, small=2))) == first
    assert len(compiled) == 3
    assert call(Image(*first), "small", 5) == int(m.small(5)) == 12


def test_an_edit_compiles_what_it_changed(folder: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a change of a function that others call out of line: their own text stays."""
    monkeypatch.setattr(image, "PART", 1)
    build(roots(module(folder, shared=1, small=2)))
    compiled.clear()
    edited = build(roots(module(folder, shared=1, small=3)))
    assert len(compiled) == 1 and "mul" in compiled[0]
    compiled.clear()
    again = build(roots(module(folder, shared=9, small=3)))
    assert len(compiled) == 1 and "shared" in compiled[0]
    assert call(Image(*edited), "small", 5) == 18 and call(Image(*again), "small", 5) == 42
    assert call(Image(*again), "large", 2) == (2 * 3 + 9) * 3 + 10


def test_an_image_is_found_by_its_sources(folder: Path, compiled: list[str]) -> None:
    package = folder / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1")
    asked: list[int] = []

    def wanted() -> dict[str, Any]:
        asked.append(1)
        return roots(module(folder, shared=1, small=2))

    assert not is_built("test", [package])
    assert call(load_or_build("test", wanted, [package]), "small", 5) == 12
    assert is_built("test", [package]) and not is_built("other", [package])
    assert call(load_or_build("test", wanted, [package]), "small", 6) == 14
    assert len(asked) == 1
    (package / "a.py").write_text("x = 2")
    assert not is_built("test", [package])
    load_or_build("test", wanted, [package])
    assert len(asked) == 2


def test_the_key_sees_every_file_and_its_place(folder: Path) -> None:
    keys = [source_key([folder])]
    for name, text in (("a.py", "1"), ("b.py", "1"), ("sub/a.py", "1"), ("sub/a.py", "2")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        keys.append(source_key([folder]))
    (folder / "a.py").rename(folder / "sub" / "c.py")
    keys.append(source_key([folder]))
    assert len(set(keys)) == len(keys)
    (folder / "notes.txt").write_text("no source")
    assert source_key([folder]) == keys[-1]


def test_a_damaged_image_is_built_again(folder: Path, compiled: list[str]) -> None:
    m = module(folder, shared=1, small=2)
    load_or_build("test", lambda: roots(m), [folder])
    before = len(compiled)
    for path in (folder / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert call(load_or_build("test", lambda: roots(m), [folder]), "small", 5) == 12
    assert len(compiled) == 2 * before


def test_without_a_cache_folder_work_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("PELLUCID_CACHE", str(folder / "file"))
    m = module(folder, shared=1, small=2)
    assert call(load_or_build("test", lambda: roots(m), [folder]), "small", 5) == 12


def test_one_root_under_two_names_and_a_constant(folder: Path) -> None:
    made = Image(*build({"a": (scaled, (u64, constant(3))), "b": (scaled, (u64, constant(3))),
                         "c": (scaled, (u64, constant(4)))}))
    assert made.address["a"] == made.address["b"] != made.address["c"]
    assert call(made, "c", 5) == 20 and made.size > 0


@native
def scaled(a: u64, n):
    return a * n


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    build({"a": (scaled, (u64, constant(3)))}, lambda *what: told.append(what))
    assert told[0] == ("translating", 0, 1) and told[-1] == ("compiling", 1, 1)


def test_a_worker_that_stops_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NativeError, match="the compile worker stopped with status 1; its words are above"):
        list(image._workers({"good": "define void @f() {\n  ret void\n}\n", "bad": "no LLVM at all"}))
    assert "expected top-level entity" in capfd.readouterr().err


def test_a_worker_that_cannot_start_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NativeError, match="stopped with status 1"):
        list(image._workers({"good": "define void @f() {\n  ret void\n}\n" * 100_000}))


def test_an_invalid_module_is_found_before_it_is_compiled() -> None:
    from pellucid.native.target import compile_object

    with pytest.raises(RuntimeError):
        compile_object("define i64 @f(i64 %a) {\n  br label %x\nx:\n  %b = add i64 %c, 1\n  %c = add i64 %a, 1\n"
                       "  ret i64 %b\n}\n")


def test_the_text_can_be_read_as_assembly() -> None:
    from pellucid.native.target import assembly

    assert "ret" in assembly("define i64 @f(i64 %a) {\n  ret i64 %a\n}\n")
    assert cache.key("x")
