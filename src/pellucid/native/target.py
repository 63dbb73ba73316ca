"""LLVM as this host runs it: target machine, optimization, object code."""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding as llvm


@functools.cache
def initialize() -> None:
    # Division of 128 bits is expanded in place: its library routine (__udivti3) is not in every process.
    llvm.set_option("", "-expand-div-rem-bits=64")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@functools.cache
def machine() -> Any:
    """The target machine for this CPU with all its features; its code is what `linker` can place."""
    initialize()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=2, cpu=llvm.get_host_cpu_name(), features=features(), reloc="pic", codemodel="small")


@functools.cache
def features() -> str:
    """This CPU's features in LLVM's words; AVX-512 is left out, it slows other code down on some hosts."""
    found = llvm.get_host_cpu_features()
    return ",".join(("+" if on and not name.startswith("avx512") else "-") + name for name, on in sorted(found.items()))


@functools.cache
def compile_object(text: str) -> bytes:
    """Verify and optimize LLVM text, and give its object image."""
    module = llvm.parse_assembly(text, llvm.create_context())
    module.verify()
    module.triple = llvm.get_default_triple()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine(), options)
    passes.getModulePassManager().run(module, passes)
    return bytes(machine().emit_object(module))


def assembly(text: str) -> str:
    """The optimized machine code of LLVM text, for reading."""
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = llvm.get_default_triple()
    passes = llvm.create_pass_builder(machine(), llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(module, passes)
    return str(machine().emit_assembly(module))
