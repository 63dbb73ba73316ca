"""VMware's backdoor port 0x5658 (open-vm-tools, lib/include/backdoor_def.h): a guest asks by IN EAX, DX.

EAX holds the magic number and CX the command; the answer comes in EAX and, by command, in other registers, which is why
the device needs those of the processor that asks.
"""

import struct
from collections.abc import Callable
from uuid import UUID

from pellucid.kvm.api import Vcpu
from pellucid.machine.device import Device, Region, Register
from pellucid.memory import AccessSizes

MAGIC = 0x564D_5868
GET_VERSION, GET_UUID, GET_MEMORY, GET_TIME = 10, 19, 20, 23
VERSION, PRODUCT_TYPE = 6, 2
UNSUPPORTED = 0xFFFF_FFFF
MEMORY_MARK = 0x1177
MOST_LAG_US = 1_000_000
MASK = 0xFFFF_FFFF


class VmPort(Device):
    """`asking` gives the processor whose IN is being served, None when a monitor reads the port."""

    kind = "vmport"
    regions = (Region("vmport", 1, valid=AccessSizes(1, 4), impl=AccessSizes(4, 4)),)

    answer = Register(0, size=4, stored=False, doc="the answer to the command in CX")

    def __init__(
        self, asking: Callable[[], Vcpu | None], memory_size: int, uuid: str, wall_ns: Callable[[], int]
    ) -> None:
        self._asking, self._wall_ns = asking, wall_ns
        self._memory_size, self._uuid = memory_size, UUID(uuid).bytes
        super().__init__()

    @answer.on_read
    def _read(self) -> int:
        vcpu = self._asking()
        if vcpu is None:
            return UNSUPPORTED
        regs = vcpu.get_regs()
        command = regs.rcx & 0xFFFF
        if regs.rax & MASK != MAGIC:
            return UNSUPPORTED
        if command == GET_VERSION:
            result, regs.rbx, regs.rcx = VERSION, MAGIC, PRODUCT_TYPE
        elif command == GET_MEMORY:
            result, regs.rbx = min(self._memory_size, MASK), MEMORY_MARK
        elif command == GET_UUID:
            result, regs.rbx, regs.rcx, regs.rdx = struct.unpack("<4I", self._uuid)
        elif command == GET_TIME:
            seconds, rest = divmod(self._wall_ns(), 1_000_000_000)
            result, regs.rbx, regs.rcx = seconds & MASK, rest // 1000, MOST_LAG_US
        else:
            return UNSUPPORTED
        vcpu.set_regs(regs)
        return result

    @answer.on_write
    def _write(self, value: int) -> None:
        """The high-bandwidth protocol is not offered."""
