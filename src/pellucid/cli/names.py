"""The words that options take: boards, accelerators, log items, CPU features; for checks, suggestions and `help`.

Names are QEMU's. A name listed as not built is one that QEMU knows and Pellucid does not have yet, so that the answer
to it is "not built yet" rather than "unknown".
"""

BOARDS = {"microvm": "a minimal machine: serial port, RTC, virtio-mmio, ACPI; boots a kernel directly"}
BOARDS_NOT_BUILT = ("pc", "q35", "isapc", "none", "x-remote", "xenpv", "xenfv")

ACCELERATORS = {
    "tcg": "Pellucid's own engine, under the name that existing scripts use",
    "pellucid": "Pellucid's own engine",
    "soft": "Pellucid's own engine",
}
ACCELERATORS_NOT_BUILT = ("kvm", "qtest", "xen", "hvf", "whpx", "nvmm", "hax")

LOG_ITEMS = {
    "in_asm": "guest instructions of each block when it is translated",
    "op": "the ops that each block is translated to",
    "int": "interrupts and exceptions as they are delivered",
    "exec": "each block before it runs (a great deal)",
    "cpu": "CPU registers before each block (a great deal)",
    "mmu": "page walks and translation faults",
    "pcall": "far calls, returns and exceptions of protected mode",
    "cpu_reset": "CPU registers before a reset",
    "unimp": "what the guest used and is not built",
    "guest_errors": "what the guest did wrong, such as accesses to registers that do not exist",
}
LOG_ITEMS_NOT_BUILT = ("out_asm", "op_opt", "op_ind", "fpu", "page", "nochain", "plugin", "strace", "tid", "vpu")

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
