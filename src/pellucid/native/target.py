"""LLVM as this host runs it: target machine, optimization, object code, linking."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import llvmlite
import llvmlite.binding as llvm
from llvmlite.binding import orcjit


@functools.cache
def initialize() -> None:
    # Division of 128 bits is expanded in place: its library routine (__udivti3) is not in every process.
    llvm.set_option("", "-expand-div-rem-bits=64")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@functools.cache
def machine() -> Any:
    """The target machine for this CPU with all its features."""
    initialize()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=2, cpu=llvm.get_host_cpu_name(), features=features())


@functools.cache
def features() -> str:
    """This CPU's features in LLVM's words; AVX-512 is left out, it slows other code down on some hosts."""
    found = llvm.get_host_cpu_features()
    return ",".join(("+" if on and not name.startswith("avx512") else "-") + name for name, on in sorted(found.items()))


def fingerprint() -> str:
    """What compiled code depends on besides its source."""
    version = ".".join(map(str, llvm.llvm_version_info))
    return f"{llvmlite.__version__} {version} {llvm.get_host_cpu_name()} {features()}"


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


@functools.cache
def _jit() -> Any:
    initialize()
    return orcjit.create_lljit_compiler(machine())


_counter = 0


def link(objects: list[bytes], exports: list[str], libraries: Sequence[str] = ()) -> Any:
    """Link object images into this process; the result maps each export to its address and must be kept alive.

    `libraries` are names of earlier results (their `name`) whose symbols these objects use.
    """
    global _counter
    _counter += 1
    builder = orcjit.JITLibraryBuilder()
    for image in objects:
        builder.add_object_img(image)
    for library in libraries:
        builder.add_jit_library(library)
    builder.add_current_process()
    for name in exports:
        builder.export_symbol(name)
    return builder.link(_jit(), f"pellucid{_counter}")
