"""Linking: code runs wherever it is mapped, calls other objects and the outside, and is told what cannot be linked."""

import ctypes
from typing import Any

import pytest

from pellucid.native import NativeError
from pellucid.native.code import HUGE_PAGE, Code, Layout
from pellucid.native.linker import lay_out
from pellucid.native.target import compile_object

DOUBLE = 'define dso_local i64 @double(i64 %a) {\n  %b = add i64 %a, %a\n  ret i64 %b\n}\n'
CALLER = ('declare dso_local i64 @double(i64)\ndefine dso_local i64 @caller(i64 %a) {\n'
          '  %b = call i64 @double(i64 %a)\n  %c = add i64 %b, 1\n  ret i64 %c\n}\n')


def function(code: Code, name: str) -> Any:
    return ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64)(code[name])


def test_objects_call_each_other_in_either_order() -> None:
    for texts in ((DOUBLE, CALLER), (CALLER, DOUBLE)):
        code = Code(lay_out([compile_object(text) for text in texts]))
        assert not code.layout.imports
        assert function(code, "caller")(20) == 41


def test_a_library_has_what_is_outside() -> None:
    library = Code(lay_out([compile_object(DOUBLE)]))
    layout = lay_out([compile_object(CALLER)])
    assert list(layout.imports) == ["double"]
    for _ in range(3):
        code = Code(layout, [library])  # one layout, several places
        assert function(code, "caller")(4) == 9


def test_the_c_library_is_outside() -> None:
    text = ("declare dso_local i64 @labs(i64)\ndefine dso_local i64 @positive(i64 %a) {\n"
            "  %b = call i64 @labs(i64 %a)\n  ret i64 %b\n}\n")
    assert function(Code(lay_out([compile_object(text)])), "positive")(-5 & (1 << 64) - 1) == 5


def test_an_unknown_name_is_told() -> None:
    layout = lay_out([compile_object(CALLER)])
    with pytest.raises(NativeError, match="needs 'double'"):
        Code(layout)


def test_constants_and_jump_tables_move_with_the_code() -> None:
    cases = "".join(f"    i64 {n}, label %c{n}\n" for n in range(8))
    blocks = "".join(f'c{n}:\n  call void asm sideeffect "nop", ""()\n  ret i64 {n * n + 7}\n' for n in range(8))
    text = f"""define dso_local i64 @squares(i64 %a) {{
  switch i64 %a, label %no [
{cases}  ]
{blocks}no:
  ret i64 0
}}
define dso_local i64 @lanes(i64 %a) {{
  %v = insertelement <2 x i64> zeroinitializer, i64 %a, i32 0
  %w = mul <2 x i64> %v, <i64 12345678901, i64 3>
  %r = extractelement <2 x i64> %w, i32 0
  ret i64 %r
}}
"""
    layout = lay_out([compile_object(DOUBLE), compile_object(text)])
    for code in (Code(layout), Code(layout)):
        assert [function(code, "squares")(n) for n in range(9)] == [*(n * n + 7 for n in range(8)), 0]
        assert function(code, "lanes")(10) == 123456789010


def test_large_code_lies_on_a_huge_page() -> None:
    code = Code(Layout(b"\xc3" * HUGE_PAGE, {"f": 0, "last": HUGE_PAGE - 1}, {}))
    assert code.address % HUGE_PAGE == 0
    ctypes.CFUNCTYPE(None)(code["f"])()
    ctypes.CFUNCTYPE(None)(code["last"])()


def test_the_code_cannot_be_written() -> None:
    code = Code(Layout(b"\xc3", {"f": 0}, {}))
    with open("/proc/self/maps") as maps:
        ranges = [(line, *(int(end, 16) for end in line.split()[0].split("-"))) for line in maps]
    line = next(line for line, start, end in ranges if start <= code.address < end)  # a mapping may join its neighbour
    assert line.split()[1] == "r-xp"


def test_an_absolute_address_is_refused() -> None:
    text = "@x = dso_local global i64 1\n@y = dso_local global ptr @x\n"
    with pytest.raises(NativeError, match="relocation of type 1"):
        lay_out([compile_object(text)])
