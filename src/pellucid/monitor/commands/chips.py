"""The interrupt controllers, as `info pic` and `info irq` show them."""

from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip.ioapic import IOAPIC_VERSION_EOI, IOAPIC_VERSION_KVM
from pellucid.kvm.irqchip.state import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    IoapicState,
    PicState,
)
from pellucid.monitor.command import command
from pellucid.monitor.session import Session

DELIVERY_MODES = ("fixed", "lowest", "SMI", "...", "NMI", "INIT", "...", "extINT")
MASKED, LEVEL, REMOTE_IRR, ACTIVE_LOW, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 13, 1 << 11


@command(info="pic", help="show PIC state")
def pic(session: Session) -> str:
    """The IOAPIC and the two 8259s; nothing on a machine without them."""
    vm = session.machine.vm
    try:
        ioapic = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    except InvalidRequestError:
        return ""
    assert isinstance(ioapic, IoapicState)
    split = session.machine.config.kernel_irqchip == "split"
    text = _ioapic_text(ioapic, IOAPIC_VERSION_EOI if split else IOAPIC_VERSION_KVM)
    for number, chip in ((1, KVM_IRQCHIP_PIC_SLAVE), (0, KVM_IRQCHIP_PIC_MASTER)):
        state = vm.get_irqchip(chip)
        assert isinstance(state, PicState)
        text += _pic_text(number, state)
    return text


def _ioapic_text(state: IoapicState, version: int) -> str:
    lines = [f"ioapic0: ver=0x{version:x} id=0x{state.id:02x} sel=0x{state.ioregsel:02x}"]
    lines[0] += f" (redir[{state.ioregsel - 0x10 >> 1}])" if state.ioregsel >= 0x10 else ""
    for pin, entry in enumerate(state.redirtbl):
        lines.append(
            f"  pin {pin:<2} 0x{entry:016x} dest={entry >> 56:x} vec={entry & 0xFF:<3} "
            f"{'active-lo' if entry & ACTIVE_LOW else 'active-hi'} {'level' if entry & LEVEL else 'edge':<5} "
            f"{'masked' if entry & MASKED else '':<6} {DELIVERY_MODES[entry >> 8 & 7]:<6} "
            f"{'logical' if entry & LOGICAL else 'physical'}"
        )
    remote = sum(1 << pin for pin, entry in enumerate(state.redirtbl) if entry & LEVEL and entry & REMOTE_IRR)
    lines += [f"  IRR     {_pins(state.irr)}", f"  Remote IRR{_pins(remote)}"]
    return "\n".join(lines) + "\n"


def _pins(mask: int) -> str:
    numbers = [str(pin) for pin in range(24) if mask >> pin & 1]
    return " " + (" ".join(numbers) or "(none)")


def _pic_text(number: int, state: PicState) -> str:
    return (
        f"pic{number}: irr={state.irr:02x} imr={state.imr:02x} isr={state.isr:02x} hprio={state.priority_add} "
        f"irq_base={state.irq_base:02x} rr_sel={state.read_reg_select} elcr={state.elcr:02x} "
        f"fnm={state.special_fully_nested_mode}\n"
    )


@command(info="irq", help="show the interrupts statistics (if available)")
def irq(session: Session) -> str:
    """How often each pin was raised."""
    counts = session.machine.vm.irq_statistics()
    text = ""
    for title, chips in (("ioapic", (KVM_IRQCHIP_IOAPIC,)), ("isa-i8259", (0, 1))):
        text += f"IRQ statistics for {title}:\n"
        for chip in chips:
            base = 8 if chip == KVM_IRQCHIP_PIC_SLAVE else 0
            # QEMU counts the timer as the ISA line that it is, before the IOAPIC takes it to pin 2.
            timer = 2 if chip == KVM_IRQCHIP_IOAPIC else -1
            pins = sorted((0 if pin == timer else pin, n) for (owner, pin), n in counts.items() if owner == chip)
            text += "".join(f"{pin + base:2d}: {count}\n" for pin, count in pins)
    return text
