"""Host instructions for plain-Python execution: each is compiled once, on first use, and called by address."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from pellucid.native.code import Code
from pellucid.native.intrinsics import asm_text
from pellucid.native.linker import lay_out
from pellucid.native.target import compile_object
from pellucid.native.types import NativeType
from pellucid.native.values import ir_type

_alive: list[Code] = []
_STRIDE = 64   # bytes of the widest operand, a 512-bit vector


def compile_call(text: str, name: str, result: Any, *args: Any) -> Any:
    """Link LLVM text and give its function `name` as a ctypes callable."""
    code = Code(lay_out([compile_object(text)]))
    _alive.append(code)
    return ctypes.CFUNCTYPE(result, *args)(code[name])


@functools.cache
def _f80_function(name: str, result: str, body: str) -> Any:
    """A function over ten-byte values in memory; `body` computes %z from %x and %y."""
    return compile_call(f"""declare x86_fp80 @llvm.sqrt.f80(x86_fp80)
define void @f80_{name}(ptr %r, ptr %a, ptr %b) {{
  %x = load x86_fp80, ptr %a, align 1
  %y = load x86_fp80, ptr %b, align 1
  %z = {body}
  store {result} %z, ptr %r, align 1
  ret void
}}""", f"f80_{name}", None, *[ctypes.c_char_p] * 3)


def _f80(name: str, result: str, body: str, a: bytes, b: bytes) -> bytes:
    out = ctypes.create_string_buffer(16)
    _f80_function(name, result, body)(ctypes.cast(out, ctypes.c_char_p), a + bytes(6), b + bytes(6))
    return out.raw


def f80_binary(op: str, a: bytes, b: bytes) -> bytes:
    """`a op b` (fadd, fsub, fmul, fdiv) on the host's x87."""
    return _f80(op, "x86_fp80", f"{op} x86_fp80 %x, %y", a, b)[:10]


def f80_sqrt(a: bytes) -> bytes:
    """The square root on the host's x87."""
    return _f80("sqrt", "x86_fp80", "call x86_fp80 @llvm.sqrt.f80(x86_fp80 %x)", a, a)[:10]


def f80_narrow(ir: str, a: bytes) -> bytes:
    """The value as LLVM's `float` or `double`, rounded once by the host's x87."""
    return _f80(ir, ir, f"fptrunc x86_fp80 %x to {ir}", a, a)


@functools.cache
def _tsc() -> Any:
    return compile_call("declare i64 @llvm.readcyclecounter()\ndefine i64 @tsc() {\n"
                        "  %t = call i64 @llvm.readcyclecounter()\n  ret i64 %t\n}", "tsc", ctypes.c_uint64)


def host_rdtsc() -> int:
    return int(_tsc()())


@functools.cache
def _asm_stub(kind: Any, template: str, constraints: str, types: tuple[NativeType, ...]) -> Any:
    loads = "".join(f"  %v{i} = load {ir_type(t)}, ptr %a{i}, align 1\n" for i, t in enumerate(types))
    passed = ", ".join(f"{ir_type(t)} %v{i}" for i, t in enumerate(types))
    call = asm_text(kind, template, constraints, passed)
    body = f"  {call}\n" if kind is None else f"  %r = {call}\n  store {ir_type(kind)} %r, ptr %out, align 1\n"
    params = ", ".join(["ptr %mxcsr", "ptr %out", *(f"ptr %a{i}" for i in range(len(types)))])
    switch = [_mxcsr("st", "%own"), _mxcsr("ld", "%mxcsr"), _mxcsr("st", "%mxcsr"), _mxcsr("ld", "%own")]
    text = (f"define void @host_asm({params}) {{\n  %own = alloca i32\n{loads}{switch[0]}{switch[1]}{body}"
            f"{switch[2]}{switch[3]}  ret void\n}}")
    return compile_call(text, "host_asm", None, *[ctypes.c_void_p] * (2 + len(types)))


def _mxcsr(way: str, place: str) -> str:
    return f'  call void asm sideeffect "{way}mxcsr ($0)", "r,~{{memory}}"(ptr {place})\n'


_guest_mxcsr = ctypes.c_uint32(0x1F80)


def run_asm(kind: Any, template: str, constraints: str, args: tuple[Any, ...]) -> Any:
    """Plain Python's `asm`: values travel through memory.

    Between two of these Python computes with floats of its own, so they have an MXCSR apart, which `ldmxcsr` sets.
    """
    types = tuple(type(a) for a in args)
    if not all(isinstance(t, NativeType) for t in types):
        raise TypeError("asm takes values that have a native type: write u64(...)")
    stub = _asm_stub(kind, template, constraints, types)
    memory = ctypes.create_string_buffer(_STRIDE * (len(args) + 1))
    base = ctypes.addressof(memory)
    for i, a in enumerate(args):
        type(a).write(base + _STRIDE * (i + 1), a)
    stub(ctypes.addressof(_guest_mxcsr), *(base + _STRIDE * i for i in range(len(args) + 1)))
    return None if kind is None else kind.read(base)
