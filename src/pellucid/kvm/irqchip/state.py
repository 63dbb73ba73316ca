"""Saved state of the interrupt chips, in the layout of KVM's structures (KVM_GET_IRQCHIP, _LAPIC, _PIT2)."""


from pellucid.kvm.errors import StateError
from pellucid.kvm.uapi import UapiStruct, array, nested, s64, u8, u16, u32, u64
from pellucid.records import dataclass, field

KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2

KVM_APIC_REG_SIZE = 0x400
KVM_IOAPIC_NUM_PINS = 24
KVM_PIT_FLAGS_HPET_LEGACY = 1
KVM_PIT_FLAGS_SPEAKER_DATA_ON = 2


@dataclass(frozen=True, slots=True)
class LapicState:
    """struct kvm_lapic_state: the register page, each 32-bit register at its xAPIC offset.

    In x2APIC mode the id register is the whole 32-bit id and offset 0x310 holds the ICR's upper half. IA32_APIC_BASE
    and the TSC deadline are MSRs and not part of it.
    """

    regs: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.regs, bytes) or len(self.regs) != KVM_APIC_REG_SIZE:
            raise StateError(f"LapicState.regs: {KVM_APIC_REG_SIZE} bytes are needed")

    def register(self, offset: int) -> int:
        """The 32-bit register at `offset`."""
        return int.from_bytes(self.regs[offset : offset + 4], "little")

    def pack(self) -> bytes:
        """KVM's bytes."""
        return self.regs


@dataclass(frozen=True)
class PicState(UapiStruct):
    """struct kvm_pic_state: one 8259."""

    last_irr: int = u8()
    irr: int = u8()
    imr: int = u8()
    isr: int = u8()
    priority_add: int = u8()
    irq_base: int = u8()
    read_reg_select: int = u8()
    poll: int = u8()
    special_mask: int = u8()
    init_state: int = u8()
    auto_eoi: int = u8()
    rotate_on_auto_eoi: int = u8()
    special_fully_nested_mode: int = u8()
    init4: int = u8()
    elcr: int = u8()
    elcr_mask: int = u8()


@dataclass(frozen=True)
class IoapicState(UapiStruct):
    """struct kvm_ioapic_state. `irr` has a bit for each pin whose line is asserted."""

    base_address: int = u64()
    ioregsel: int = u32()
    id: int = u32()
    irr: int = u32()
    pad: int = u32()
    redirtbl: tuple[int, ...] = array("Q", KVM_IOAPIC_NUM_PINS)


@dataclass(frozen=True)
class PitChannelState(UapiStruct):
    """struct kvm_pit_channel_state. `count` can be 65536; `count_load_time` is in the VM clock's nanoseconds."""

    count: int = u32()
    latched_count: int = u16()
    count_latched: int = u8()
    status_latched: int = u8()
    status: int = u8()
    read_state: int = u8()
    write_state: int = u8()
    write_latch: int = u8()
    rw_mode: int = u8()
    mode: int = u8()
    bcd: int = u8()
    gate: int = u8()
    count_load_time: int = s64()


@dataclass(frozen=True)
class PitState(UapiStruct):
    """struct kvm_pit_state2: three channels and the flags KVM_PIT_FLAGS_*."""

    channels: tuple[PitChannelState, ...] = nested(PitChannelState, 3)
    flags: int = u32()
    reserved: tuple[int, ...] = array("I", 9)
