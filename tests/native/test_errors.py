"""Each compile error names the file, line and column of what is wrong, and what to write instead.

In the sources below `§` stands before the place that the error must name.
"""

import importlib.util
import itertools
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest

from pellucid.native import NativeError, bitcast, f32, f64, f80, i32, ptr, u8, u16, u32, u64, u128, vec
from pellucid.native.program import Program
from tests.native.harness import Const

PRELUDE = """\
from pellucid.native import *

class Stop(NativeException): pass
class Other(NativeException): pass

@struct
class P:
    x: u32
    y: u64
    z: array[u16, 4]

table = (1, 2, 3)
CONSTANT = u32(7)

def helper(x):
    return x

@native(inline=False)
def risky(a: u64) -> u64:
    if a == 1: raise Stop
    return a

@native
def two(a):
    return a, a

@native
def nothing(a: u64) -> None:
    pass

"""

# name, parameters, message (a part), source of the function
P, U = "P", u64
CASES: list[tuple[str, tuple[Any, ...], str, str]] = [
    # types that do not mix, literals that do not fit
    ("mix", (u64, u32), "u64 and u32 do not mix; convert one of them, e.g. u64(...)", "return §a + b"),
    ("mix_compare", (u64, u32), "u64 and u32 do not mix", "return §a < b"),
    ("mix_float", (f32, f64), "f32 and f64 do not mix", "return §a * b"),
    ("mix_vector", (vec[u8, 4], vec[u8, 8]), "do not mix", "return §a + b"),
    ("mix_constant", (u64,), "u32 where u64 is needed; convert it: u64(...)", "return §a + CONSTANT"),
    ("mix_bool", (u64, bool), "u64 and bool do not mix", "return §a + b"),
    ("fits", (u8,), "256 does not fit u8; use a wider type or mask it", "return §a + 256"),
    ("fits_negative", (u8,), "-129 does not fit u8", "return §a - -129"),
    ("fits_call", (), "300 does not fit u8", "return §u8(300)"),
    ("fits_argument", (u64,), "does not fit u64", "return §risky(1 << 64)"),
    ("float_literal", (u64,), "1.5 is not a u64; write one, or convert: u64(...)", "return §a + 1.5"),
    ("argument", (u32,), "u32 where u64 is needed; convert it: u64(...)", "return §risky(a)"),
    ("declared", (u32,), "u32 where u64 is needed; convert it: u64(...)", "§t: u64 = a\nreturn t"),
    ("stored", (ptr, u64), "u64 where u32 is needed; convert it: u32(...)", "§p.x = a"),
    ("stored_struct", (ptr,), "array[u16, 4] is not assigned as a whole; assign its parts or memcpy", "§p.z = 0"),
    ("assigned", (u64, u32), "'t' is u64, not u32; convert the value", "t = a + 1\n§t = b"),
    ("wrong_side", (u64, u32), "u32 where u64 is needed", "return §a if a > 1 else b"),
    ("no_side", (u64,), "neither side has a type; write u64(...) on one", "return (§1 if a else 2) + (3 if a else 4)"),
    # operators
    ("shifted_literal", (u64,), "a shifted literal has no type; write u64(1) << n", "return §1 << a"),
    ("shift_count", (u64, f64), "a shift count is an integer, not f64", "return §a << b"),
    ("signed_quotient", (i32,), "use sdiv(a, b) or srem(a, b)", "return §a // 3"),
    ("slash", (u64,), "/ is not an operation on u64; use // for integers", "return §a / 2"),
    ("power", (u64,), "** is not an operation on u64", "return §a ** 2"),
    ("bool_sum", (bool, bool), "+ is not an operation on bool; use and, or, not, or convert it", "return §a + b"),
    ("pointer_sum", (ptr, ptr), "+ is not an operation on ptr[P]; use ref(p, i), at(p, offset, T)", "return §p + q"),
    ("invert_bool", (bool,), "~ is not an operation on bool; use not for conditions", "return §~a"),
    ("negate_pointer", (ptr,), "- is not an operation on ptr[P]", "return §-p"),
    ("chained", (u64,), "a chained comparison is not in the subset; join two with and", "return §1 < a < 5"),
    ("membership", (u64,), "in is not in the subset for run-time values", "return §a in (1, 2)"),
    ("float_condition", (f64,), "f64 is not a condition; compare it", "if §a: pass"),
    ("vector_condition", (vec[u8, 4],), "is not a condition; compare it; movemask joins lanes", "if §a: pass"),
    ("comptime", (u64,), "compile-time arithmetic: ", "return a + (§1 // 0)"),
    ("unsigned_sdiv", (u64,), "sdiv divides signed integers, not u64; use // and %", "return §sdiv(a, 2)"),
    # names
    ("unknown", (u64,), "'nowhere' is not defined here", "return a + §nowhere"),
    ("before", (u64,), "'table' is not defined here; bind it before", "t = §table\ntable = a\nreturn t"),
    ("one_side", (u64, Const(1)), "'t' is not defined here", "if b == 2:\n    t = a\nreturn §t"),
    ("changes", (u64,),
     "'n' is known at compile time and changes under a run-time condition; give it a type where it is "
     "first assigned: n: u64 = ...", "n = 1\nif a > 2:\n    n = 2\nreturn a + §n"),
    ("gets_value", (u64,), "'n' is known at compile time and gets a run-time value under a run-time condition",
     "n = 1\nif a > 2:\n    n = a\nreturn a + §n"),
    ("some_ways", (u64,), "'n' is known at compile time and is bound on some of the ways that lead here",
     "if a > 2:\n    n = 2\nreturn a + §n"),
    ("loop_changes", (u64,), "'n' is known at compile time and changes under a run-time condition",
     "n = 1\n§while a > n:\n    n += 1\nreturn a"),
    ("for_changes", (u64,), "'n' is known at compile time and changes",
     "n = 1\n§for i in range(a):\n    n = n * 2\nreturn a"),
    ("continue_changes", (u64,), "'n' is known at compile time and changes",
     "n = 0\n§while a:\n    a -= 1 + n\n    n = 1\n    if a == 3:\n        continue\n    n = 0\nreturn a"),
    ("unrolled_changes", (u64,), "'n' is known at compile time and changes",
     "n = 0\nfor k in static((1, 2)):\n    if a == k:\n        continue\n    n = §n + 1\nreturn a + n"),
    ("unrolled_break", (u64,), "'k' is known at compile time and changes",
     "for k in static((1, 2)):\n    if a == k:\n        break\nreturn a + §k"),
    ("try_changes", (u64,), "'n' is known at compile time and changes",
     "n = 0\ntry:\n    n = 1\n    risky(a)\n    n = 2\n    risky(a)\nexcept Stop:\n    return a + §n\nreturn a"),
    ("type_changes", (u64,), "'t' changes its type under a run-time condition; use another name",
     "t: u64 = 1\nif a > 2:\n    t: u32 = 2\nreturn §t"),
    ("range_type", (u64,), "'i' changes its type under a run-time condition",
     "i: u32 = 1\nfor i in range(a):\n    pass\nreturn §i"),
    # statements and expressions outside the subset
    ("with_", (u64,), "With is not in the subset; use if, while, for-range, assignment", "§with a: pass"),
    ("assert_", (u64,), "Assert is not in the subset", "§assert a"),
    ("import_", (u64,), "Import is not in the subset", "§import os"),
    ("def_", (u64,), "FunctionDef is not in the subset", "§def f(): pass"),
    ("del_", (u64,), "Delete is not in the subset", "§del a"),
    ("lambda_", (u64,), "Lambda is not in the subset; use names, literals", "f = §lambda: 1"),
    ("walrus", (u64,), "NamedExpr is not in the subset", "return (§b := a)"),
    ("while_else", (u64,), "while ... else is not in the subset; use a flag", "§while a:\n    a -= 1\nelse:\n    pass"),
    ("for_else", (u64,), "for ... else is not in the subset; use a flag",
     "§for i in range(a):\n    pass\nelse:\n    pass"),
    ("for_pointer", (ptr,), "for runs over range(...) at run time, or over compile-time data: static(...)",
     "§for x in p: pass"),
    ("static_value", (u64,), "static takes compile-time data; this is a run-time value", "for x in §static(a): pass"),
    ("range_down", (u64,), "the step of range is a positive literal; count down with while",
     "§for i in range(a, 0, -1): pass"),
    ("range_float", (f64,), "range counts in integers, not f64", "§for i in range(a): pass"),
    ("range_wide", (u8,), "the step 300 does not fit u8", "§for i in range(0, a, 300): pass"),
    ("loop_parts", (u64,), "an item of this loop has 3 parts and 2 names", "§for x, y in static([(1, 2, 3)]): pass"),
    ("declaration", (u64,), "a declaration is: name: type = value", "§t: u64"),
    ("declared_int", (u64,), "int is not a native type; write u64, bool", "§t: int = 5"),
    ("declared_struct", (u64,), "P lives in memory only; write p = local(P)", "§t: P = 5"),
    ("unpack", (u64,), "the value has another number of parts than the 3 names", "§x, y, z = two(a)"),
    ("tuple_name", (u64,), "a sequence of run-time values is not an operand; unpack it", "§t = two(a)"),
    ("lane_store", (vec[u8, 4],), "make a new vector: v = insert(v, lane, x)", "§a[1] = 5"),
    ("name_store", (u64,), "this is not a place to store to", "§two(a)[0] = 5"),
    ("no_result", (u64,), "this call returns nothing", "t = §nothing(a) + 1"),
    # calls
    ("plain", (u64,), "'helper' is plain Python and gets a run-time value; decorate it with @native",
     "return §helper(a)"),
    ("run_time_callee", (u64,), "a run-time value is not callable; use tail(...) or invoke(...)", "return §a(1)"),
    ("misses", (u64,), "risky misses its argument 'a'", "return §risky()"),
    ("too_many", (u64,), "risky takes 1 arguments: a", "return §risky(a, a)"),
    ("keyword", (u64,), "risky takes 1 arguments: a", "return §risky(a, b=a)"),
    ("stars", (u64,), "** is not in the subset; name the arguments", "return §risky(**table)"),
    ("sequence", (u64,), "two gets a sequence of run-time values as 'a'; pass its parts", "return §two(two(a))"),
    ("static_fails", (), "int(...) at compile time: invalid literal", "return u64(§int('x'))"),
    ("intrinsic_arguments", (u64,), "missing a required argument: 'n'", "return §rotl(a)"),
    ("untyped", (), "the literal 5 has no type here; write u64(5)", "return §popcount(5)"),
    ("popcount", (f64,), "an integer is needed, not f64", "return §popcount(a)"),
    ("no_pointer", (u64,), "a pointer is needed, not u64; write ptr[T](address)", "return §atomic_load(a)"),
    ("atomic_struct", (ptr,), "an atomic access is to an integer, not P", "return §atomic_load(p)"),
    ("no_type", (u64,), "a type is needed here, e.g. u64", "return §bitcast(5, a)"),
    ("asm_run_time", (u64,), "asm takes its result type, template and constraints as literals",
     "return §asm(a, 'nop', '')"),
    ("no_conversion", (f64,), "f64 does not convert to ptr[P]", "return §ptr[P](a)"),
    ("wide_float", (f64,), "f64 does not convert to u128 on the host; go through u64 or i64", "return §u128(a)"),
    ("bitcast_size", (u64,), "u64 and u32 differ in size; convert instead: u32(...)", "return §bitcast(u32, a)"),
    ("bitcast_f80", (f80,), "the 80 bits of f80 are no integer's; store it and load its bytes",
     "return §bitcast(u128, a)"),
    ("bitcast_bools", (vec[u8, 8],), "a bool has no bits of its own", "return §bitcast(u8, a > 1)"),
    ("two_values", (u64,), "u64(...) converts one value", "return §u64(a, 8)"),
    ("parts", (u64,), "vec[u64, 2] is not made of 3 parts; give one, or one for each lane",
     "return §vec[u64, 2]([a, a, a])"),
    ("lane", (vec[u8, 4],), "vec[u8, 4] has no lane 4; it has 0 to 3", "return §a[4]"),
    ("shuffle_lane", (vec[u8, 4],), "the lanes of a shuffle are literals from 0 to 7", "return §shuffle(a, a, [8])"),
    ("lane_counts", (vec[u8, 4],), "the lane counts differ", "return §vec[u16, 8](a)"),
    ("vector_float", (vec[f32, 4],), "vector float to integer is not total in LLVM", "return §vec[i32, 4](a)"),
    ("movemask", (vec[u8, 4],), "movemask takes a vector of bools", "return §movemask(a)"),
    ("select_lanes", (vec[u8, 4], vec[u8, 8]), "the condition is a comparison of as many lanes",
     "return §select(a > 1, b, b)"),
    ("vector_memory", (vec[u8, 4], ptr), "a vector of bools has no memory form", "§ptr[vec[bool, 4]](p)[0] = a > 1"),
    # fields, elements, compile-time data
    ("no_field", (ptr,), "P has no field 'w'; it has x, y, z", "return §p.w"),
    ("no_fields", (u64,), "u64 has no fields; only a pointer to a struct has", "return §a.x"),
    ("ref_field", (ptr,), "P has no field 'w'", "return §ref(p, 'w')"),
    ("no_elements", (u64,), "u64 has no elements", "return §a[0]"),
    ("float_index", (ptr, f64), "f64 is not an index; use an integer", "return §p[a]"),
    ("table", (u64,), "a compile-time table is indexed by a compile-time value; put the table into memory",
     "return a + §table[a]"),
    ("table_range", (u64,), "IndexError", "return a + §table[3]"),
    ("comprehension", (u64,), "a comprehension's test is compile-time only", "return §[k for k in table if a == k][0]"),
    ("comprehension_over", (ptr,), "a comprehension runs over compile-time data", "return §[k for k in p]"),
    ("format", (u64,), "a format string is compile-time only", "t = §f'{a}'"),
    ("slice", (u64,), "a slice is compile-time only", "t = table[§a:]"),
    # results
    ("two_results", (u64,), "this returns u32 where u64 is the result; convert it",
     "if a:\n    return a\n§return u32(a)"),
    ("literal_result", (u64,), "the result's type is not known from a literal; annotate it: def f(...) -> u64",
     "§return 5"),
    ("literal_tuple", (u64,), "a literal in a result tuple has no type; write u64(0)", "§return a, 0"),
    ("nothing_result", (u64,), "this returns nothing where u64 is the result", "if a:\n    return a\n§return"),
    # exceptions
    ("raise_value", (u64,), "an exception here is a class derived from NativeException", "§raise ValueError"),
    ("raise_from", (u64,), "raise ... from is not in the subset; raise alone", "§raise Stop from None"),
    ("raise_alone", (u64,), "raise without a name stands in an except block", "§raise"),
    ("catch_value", (u64,), "an exception here is a class derived from NativeException",
     "§try:\n    risky(a)\nexcept ValueError:\n    pass"),
    ("catch_bare", (u64,), "an exception here is a class derived from NativeException",
     "§try:\n    risky(a)\nexcept:\n    pass"),
    ("catch_as", (u64,), "try takes one except, without `as`", "§try:\n    risky(a)\nexcept Stop as e:\n    pass"),
    ("finally_", (u64,), "try takes one except", "§try:\n    risky(a)\nfinally:\n    pass"),
    ("stray", (u64,), "Stop raised in this try is not caught by its except",
     "try:\n    risky(a)\n§except Other:\n    pass"),
    # handlers
    ("tail_outside", (ptr, ptr), "tail is for handlers; decorate the function with @native(tail=True)",
     "§tail(5, p, q)"),
    ("tail_target", (ptr, u32), "u32 where u64 is needed", "§invoke(a, p, p)"),
    ("invoke_value", (u64,), "a pointer is needed, not u64", "§invoke(a, a, a)"),
]

_numbers = itertools.count()


def load_module(folder: Path, source: str) -> tuple[Any, Path, int, int]:
    """The module of a source with a marked place; its path and the place's line and column."""
    path = folder / f"bad{next(_numbers)}.py"
    lines = source.splitlines()
    line = next(i for i, text in enumerate(lines) if "§" in text)
    column = lines[line].index("§") + 1
    path.write_text(source.replace("§", ""), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module, path, line + 1, column


def expect(module: Any, path: Path, line: int, column: int, message: str, params: tuple[Any, ...]) -> NativeError:
    params = tuple(ptr[module.P] if p is ptr else p for p in params)
    with pytest.raises(NativeError) as caught:
        Program().request(module.bad, params)
    error = caught.value
    assert message in str(error)
    assert (error.file, error.line, error.column) == (str(path), line, column), str(error)
    assert str(error).startswith(f"{path}:{line}:{column}: ") and "\n" not in str(error)
    return error


@pytest.mark.parametrize(("params", "message", "body"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_error(tmp_path: Path, params: tuple[Any, ...], message: str, body: str) -> None:
    pointers, values = iter("pqr"), iter("abc")
    names = ", ".join(next(pointers) if p is ptr else next(values) for p in params)
    source = PRELUDE + f"@native\ndef bad({names}):\n" + textwrap.indent(body, "    ") + "\n"
    expect(*load_module(tmp_path, source), message, params)


WHOLE: list[tuple[str, tuple[Any, ...], str, str]] = [
    ("raise_out_of_a_handler", (ptr, ptr), "an exception leaves this handler; catch it inside",
     "@native(tail=True)\n§def bad(p, q):\n    risky(u64(p))\n"),
    ("handler_of_three", (ptr, ptr, u64), "a handler takes two pointers",
     "@native(tail=True)\n§def bad(p, q, a):\n    pass\n"),
    ("handler_of_a_number", (ptr, u64), "a handler takes two pointers",
     "@native(tail=True)\n§def bad(p, a):\n    pass\n"),
    ("handler_with_result", (ptr, ptr), "a handler returns nothing",
     "@native(tail=True)\ndef bad(p, q):\n    §return u64(p)\n"),
    ("recursive", (u64,), "bad is recursive; annotate its result",
     "@native\ndef bad(a: u64):\n    return a if a < 2 else §bad(a - 1)\n"),
    ("falls_off", (u64,), "the end is reached without a result; return one on every way",
     "@native\n§def bad(a: u64) -> u64:\n    if a:\n        return a\n"),
    ("wrong_annotation", (u64,), "this returns u32 where u64 is the result; convert it",
     "@native\ndef bad(a: u64) -> u64:\n    §return u32(a)\n"),
    ("wrong_literal", (u64,), "256 does not fit u8", "@native\ndef bad(a: u64) -> u8:\n    §return 256\n"),
    ("odd_annotation", (u64,), "is not a native type; write u64", "@native\n§def bad(a: u64) -> int:\n    return a\n"),
    ("text_annotation", (u64,), "annotations are evaluated", "@native\n§def bad(a: 'u64') -> u64:\n    return a\n"),
    ("root_type", (u32,), "u32 where 'a' is u64; give that type", "@native\n§def bad(a: u64):\n    return a\n"),
    ("root_count", (u64, u64), "bad takes 1 arguments, not 2", "@native\n§def bad(a: u64):\n    return a\n"),
    ("star", (u64,), "parameters are plain names", "@native\n§def bad(*a):\n    return u64(1)\n"),
    ("keyword_only", (u64,), "parameters are plain names", "@native\n§def bad(a, *, b=1):\n    return a\n"),
]


@pytest.mark.parametrize(("params", "message", "source"), [c[1:] for c in WHOLE], ids=[c[0] for c in WHOLE])
def test_error_of_the_whole_function(tmp_path: Path, params: tuple[Any, ...], message: str, source: str) -> None:
    expect(*load_module(tmp_path, PRELUDE + source), message, params)


def test_an_error_in_a_callee_tells_who_asked_for_it(tmp_path: Path) -> None:
    source = (PRELUDE + "@native\ndef inner(a, b):\n    return §a + b\n\n"
              "@native\ndef bad(a):\n    return inner(a, u8(1))\n")
    module, path, line, column = load_module(tmp_path, source)
    error = expect(module, path, line, column, "u64 and u8 do not mix", (u64,))
    assert error.__notes__ == [f"compiled for the call at {path}:{line + 4}"]


def test_the_error_is_one_line_for_people(tmp_path: Path) -> None:
    """What is printed has the message last, without a line of the compiler's own in it."""
    module, path, line, column = load_module(tmp_path, PRELUDE + "@native\ndef bad(a):\n    return §a + 1.5\n")
    error = expect(module, path, line, column, "1.5 is not a u64", (u64,))
    assert "".join(traceback.format_exception_only(error)).strip().endswith(str(error))


def test_dead_code_is_not_compiled(tmp_path: Path) -> None:
    """After a return, and on the side that a compile-time condition does not take, anything may stand."""
    path = tmp_path / "dead.py"
    path.write_text(PRELUDE + "@native\ndef fine(a, W):\n    if W == 1:\n        return a\n        return a + nowhere\n"
                    "    return a + 1.5\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("dead", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dead"] = module
    spec.loader.exec_module(module)
    assert Program().request(module.fine, (u64, Const(1))).done


def test_plain_bitcast_refuses_what_the_compiler_refuses() -> None:
    for kind, value in ((u32, u64(1)), (u128, f80(1)), (u8, vec[bool, 8](True)), (u16, u8(1))):
        with pytest.raises(TypeError):
            bitcast(kind, value)
