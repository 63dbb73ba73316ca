"""The native compiler: functions in a statically typed subset of Python, compiled by LLVM.

Everything that such a function is written with comes from here.
"""

from pellucid.native.errors import NativeError, NativeException
from pellucid.native.function import NativeFunction, native
from pellucid.native.intrinsics import (
    TailCall, add_sat, asm, at, atomic_add, atomic_and, atomic_load, atomic_or, atomic_store, atomic_xchg, bitcast,
    bswap, cas, clz, ctz, fence, foreign, insert, invoke, is_constant, likely, local, maximum, memcpy, memset, minimum,
    monotonic_ns, movemask, permute, popcount, rdtsc, ref, rotl, rotr, sdiv, select, shuffle, sqrt, srem, static,
    sub_sat, tail, unlikely, volatile_load, volatile_store)
from pellucid.native.structs import struct
from pellucid.native.types import (
    array, f32, f64, f80, i8, i16, i32, i64, i128, ptr, sint, u8, u16, u32, u64, u128, uint, vec)

__all__ = [
    "NativeError", "NativeException", "NativeFunction", "TailCall", "add_sat", "array", "asm", "at", "atomic_add",
    "atomic_and", "atomic_load", "atomic_or", "atomic_store", "atomic_xchg", "bitcast", "bswap", "cas", "clz", "ctz",
    "f32", "f64", "f80", "fence", "foreign", "i8", "i16", "i32", "i64", "i128", "insert", "invoke", "is_constant",
    "likely", "local", "maximum", "memcpy", "memset", "minimum", "monotonic_ns", "movemask", "native", "permute",
    "popcount", "ptr", "rdtsc", "ref",
    "rotl", "rotr", "sdiv", "select", "shuffle", "sint", "sqrt", "srem", "static", "struct", "sub_sat", "tail", "u8",
    "u16", "u32", "u64", "u128", "uint", "unlikely", "vec", "volatile_load", "volatile_store",
]
