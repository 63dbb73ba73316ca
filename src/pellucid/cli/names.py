"""The words that options take: boards, accelerators, CPU features; for checks, suggestions and `help`.

Names are QEMU's. A name listed as not built is one that QEMU knows and Pellucid does not have yet, so that the answer
to it is "not built yet" rather than "unknown". Boards that are built say so themselves (machine/board.py).
"""

BOARDS_NOT_BUILT = ("isapc", "x-remote", "xenpv", "xenfv")

ACCELERATORS = {
    "tcg": "Pellucid's own engine, under the name that existing scripts use",
    "pellucid": "Pellucid's own engine",
    "soft": "Pellucid's own engine",
    "qtest": "nobody: tests drive the devices, over -qtest",
}
ACCELERATORS_NOT_BUILT = ("kvm", "xen", "hvf", "whpx", "nvmm", "hax")
