"""VMware's port: what each command answers, in which registers."""

import uuid

from pellucid.kvm.regs import Regs
from pellucid.machine.devices.vmport import GET_MEMORY, GET_TIME, GET_UUID, GET_VERSION, MAGIC, UNSUPPORTED, VmPort

ID = "00112233-4455-6677-8899-aabbccddeeff"


class Asking:
    """A processor with registers."""

    def __init__(self, command: int, magic: int = MAGIC) -> None:
        self.regs = Regs(rax=magic, rcx=command, rbx=7, rdx=0x5658)

    def get_regs(self) -> Regs:
        return self.regs

    def set_regs(self, regs: Regs) -> None:
        self.regs = regs


def ask(vcpu: Asking | None, memory: int = 1 << 27) -> int:
    return VmPort(lambda: vcpu, memory, ID, lambda: 12_345_678_901).read(0, 4)  # type: ignore[arg-type, return-value]


def test_answers() -> None:
    version = Asking(GET_VERSION)
    assert ask(version) == 6 and (version.regs.rbx, version.regs.rcx) == (MAGIC, 2)
    memory = Asking(GET_MEMORY)
    assert ask(memory) == 1 << 27 and memory.regs.rbx == 0x1177
    assert ask(Asking(GET_MEMORY), 8 << 30) == 0xFFFF_FFFF
    ident = Asking(GET_UUID)
    words = (ask(ident), ident.regs.rbx, ident.regs.rcx, ident.regs.rdx)
    assert b"".join(word.to_bytes(4, "little") for word in words) == uuid.UUID(ID).bytes
    time = Asking(GET_TIME)
    assert ask(time) == 12 and (time.regs.rbx, time.regs.rcx) == (345_678, 1_000_000)


def test_what_is_refused_changes_nothing() -> None:
    for vcpu in (Asking(GET_VERSION, MAGIC + 1), Asking(999), None):
        assert ask(vcpu) == UNSUPPORTED
        assert vcpu is None or vcpu.regs.rbx == 7
