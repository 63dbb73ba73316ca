"""The words that options take: boards, accelerators, log items, CPU features; for checks, suggestions and `help`.

Names are QEMU's. A name listed as not built is one that QEMU knows and Pellucid does not have yet, so that the answer
to it is "not built yet" rather than "unknown". Boards that are built say so themselves (machine/board.py).
"""

from dataclasses import dataclass

BOARDS_NOT_BUILT = ("q35", "isapc", "none", "x-remote", "xenpv", "xenfv")

ACCELERATORS = {
    "tcg": "Pellucid's own engine, under the name that existing scripts use",
    "pellucid": "Pellucid's own engine",
    "soft": "Pellucid's own engine",
}
ACCELERATORS_NOT_BUILT = ("kvm", "qtest", "xen", "hvf", "whpx", "nvmm", "hax")


@dataclass(frozen=True)
class LogItem:
    """An item of -d: what it shows, and the loggers that it opens."""

    help: str
    loggers: tuple[str, ...]


LOG_ITEMS = {
    "unimp": LogItem("instructions that the guest used and that are not built", ("pellucid.translate",)),
    "guest_errors": LogItem("accesses of the guest to where nothing answers", ("pellucid.memory.invalid",)),
}
LOG_ITEMS_NOT_BUILT = """
in_asm out_asm op op_opt op_ind int exec cpu fpu mmu pcall cpu_reset page nochain plugin strace tid vpu
""".split()

CPU_MODELS_NOT_BUILT = """
athlon base Dhyana EPYC EPYC-IBPB EPYC-Milan EPYC-Rome Opteron_G1 Opteron_G2 Opteron_G3 Opteron_G4 Opteron_G5 phenom
""".split()
"""QEMU's models of processors that are not Intel's: SYSCALL and more differ there."""

CPU_PROPERTIES = (
    "phys-bits",
    "host-phys-bits",
    "tsc-frequency",
    "vendor",
    "family",
    "model",
    "stepping",
    "model-id",
    "level",
    "xlevel",
    "min-level",
    "min-xlevel",
    "check",
    "enforce",
    "migratable",
    "pmu",
    "kvm",
)
