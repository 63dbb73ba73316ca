"""Starting a guest without firmware: what to put where in memory, and what the first processor's registers hold."""

from pellucid.machine.boot.image import KernelImage, read_kernel
from pellucid.machine.boot.plan import BootPlan, GuestRam, MemoryMapEntry, MemoryType

__all__ = ["BootPlan", "GuestRam", "KernelImage", "MemoryMapEntry", "MemoryType", "read_kernel"]
