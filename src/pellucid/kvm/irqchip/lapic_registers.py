"""The register window of a local APIC: the xAPIC page, the x2APIC MSRs, and the saved page.

Which registers exist, which bits of them may be written, and what an access outside of that does: in xAPIC mode
reserved bits are dropped and reserved registers raise an ESR error; in x2APIC mode both raise #GP (Intel SDM vol. 3,
tables 11-1 and 11-6). The registers themselves are attributes of the `Lapic`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pellucid.kvm.errors import MsrAccessError, StateError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.apicdef import LINT0_ENTRY, NR_LVT_ENTRIES, TIMER_ENTRY, ApicMode
from pellucid.kvm.irqchip.state import KVM_APIC_REG_SIZE, LapicState

if TYPE_CHECKING:
    from pellucid.kvm.irqchip.lapic import Lapic

_LVT_COMMON = d.LVT_VECTOR | d.LVT_MASKED
_LINT = _LVT_COMMON | d.LVT_MODE | d.LVT_POLARITY | d.LVT_LEVEL
_LVT_WRITABLE = (
    _LVT_COMMON | d.LVT_TIMER_MODE,
    _LVT_COMMON | d.LVT_MODE,
    _LVT_COMMON | d.LVT_MODE,
    _LINT,
    _LINT,
    _LVT_COMMON,
)
_LVT_READ_ONLY = d.LVT_SEND_PENDING | d.LVT_REMOTE_IRR

_LVTS = tuple(d.APIC_LVTT + 16 * index for index in range(NR_LVT_ENTRIES))

_X2APIC_ICR_RESERVED = 0xFFF3_2000  # bits 31:20, 17:16 and 13 of the lower half
_NOT_IN_X2APIC = frozenset((d.APIC_ARBPRI, d.APIC_RRR, d.APIC_DFR, d.APIC_ICR2, d.APIC_EOI))
_ERROR_BITS = 0xFF
_VALID_VECTORS = (1 << 256) - (1 << 16)

Reader = Callable[[], int]
Writer = Callable[[int], None]


def _saved_vectors(state: LapicState, base: int) -> int:
    """The 256-bit register whose eight 32-bit words start at `base`, without the vectors that do not exist."""
    return sum(state.register(base + 16 * word) << 32 * word for word in range(8)) & _VALID_VECTORS


class RegisterWindow:
    """Guest access to the registers of one `Lapic`, by offset or MSR number."""

    __slots__ = ("_lapic", "_msr_reserved", "_readers", "_writers")

    def __init__(self, lapic: "Lapic") -> None:
        self._lapic = lapic
        self._readers = self._make_readers()
        self._writers = self._make_writers()
        self._msr_reserved = self._make_msr_reserved()

    # ---- tables

    def _make_readers(self) -> dict[int, Reader]:
        a = self._lapic
        readers: dict[int, Reader] = {
            d.APIC_ID: lambda: a.id if a.mode is ApicMode.X2APIC else a.id << 24,
            d.APIC_LVR: self._version,
            d.APIC_TASKPRI: lambda: a.tpr,
            d.APIC_ARBPRI: a.arbitration_priority,
            d.APIC_PROCPRI: lambda: a.ppr,
            d.APIC_EOI: lambda: 0,
            d.APIC_RRR: lambda: 0,
            d.APIC_LDR: lambda: a.ldr,
            d.APIC_DFR: lambda: a.dfr,
            d.APIC_SPIV: lambda: a.spiv,
            d.APIC_ESR: lambda: a.esr,
            d.APIC_ICR: lambda: a.icr & 0xFFFF_FFFF,
            d.APIC_ICR2: lambda: a.icr >> 32,
            d.APIC_TMICT: lambda: a.timer.initial_count,
            d.APIC_TMCCT: a.timer.current_count,
            d.APIC_TDCR: lambda: a.timer.divide_configuration,
        }
        for index, offset in enumerate(_LVTS):
            readers[offset] = partial(a.lvt.__getitem__, index)
        for base, name in ((d.APIC_ISR, "isr"), (d.APIC_TMR, "tmr"), (d.APIC_IRR, "irr")):
            for word in range(8):
                readers[base + 16 * word] = partial(self._vector_word, name, 32 * word)
        return readers

    def _vector_word(self, name: str, shift: int) -> int:
        vectors: int = getattr(self._lapic, name)
        return vectors >> shift & 0xFFFF_FFFF

    def _make_writers(self) -> dict[int, Writer]:
        a = self._lapic
        writers: dict[int, Writer] = {
            d.APIC_ID: self._write_id,
            d.APIC_TASKPRI: lambda value: a.set_tpr(value & 0xFF),
            d.APIC_EOI: lambda value: a.eoi(),
            d.APIC_LDR: self._write_ldr,
            d.APIC_DFR: self._write_dfr,
            d.APIC_SPIV: self._write_spiv,
            d.APIC_ESR: self._write_esr,
            d.APIC_ICR: self._write_icr_low,
            d.APIC_ICR2: self._write_icr_high,
            d.APIC_TMICT: a.timer.set_initial_count,
            d.APIC_TDCR: a.timer.set_divide_configuration,
        }
        for index, offset in enumerate(_LVTS):
            writers[offset] = partial(self._write_lvt, index)
        return writers

    def _make_msr_reserved(self) -> dict[int, int]:
        """Writable x2APIC registers by offset, with the bits that must be zero. The ICR stands apart."""
        features = self._lapic.features
        reserved = {
            d.APIC_TASKPRI: ~0xFF,
            d.APIC_EOI: ~0,
            d.APIC_SPIV: ~self._spiv_writable(),
            d.APIC_ESR: ~0,
            d.APIC_TMICT: ~0xFFFF_FFFF,
            d.APIC_TDCR: ~0xB,
            d.APIC_SELF_IPI: ~0xFF,
        }
        for index, offset in enumerate(_LVTS):
            reserved[offset] = ~(_LVT_WRITABLE[index] | _LVT_READ_ONLY)
        if not features.tsc_deadline:
            reserved[d.APIC_LVTT] |= d.LVT_TIMER_TSC_DEADLINE
        return reserved

    def features_changed(self) -> None:
        """CPUID was set: which bits are reserved depends on it."""
        self._msr_reserved = self._make_msr_reserved()

    # ---- access

    def mmio_read(self, offset: int, size: int) -> int:
        """A load: bytes of the 32-bit register below each 16-byte step; zero between the registers."""
        register, byte = offset & ~0xF, offset & 0xF
        if byte + size > 4:
            return 0
        reader = self._readers.get(register)
        if reader is None:
            self._lapic.raise_error(d.ESR_ILLEGAL_REGISTER)
            return 0
        with self._lapic.lock:
            return reader() >> 8 * byte & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A store; ignored unless 32 bits wide and aligned on 16 bytes."""
        if size != 4 or offset & 0xF:
            return
        writer = self._writers.get(offset)
        if writer is not None:
            with self._lapic.lock:
                writer(value & 0xFFFF_FFFF)
        elif offset not in self._readers:
            self._lapic.raise_error(d.ESR_ILLEGAL_REGISTER)

    def msr_read(self, index: int) -> int:
        """RDMSR in x2APIC mode."""
        a = self._lapic
        offset = (index & 0xFF) << 4
        reader = self._readers.get(offset)
        if a.mode is not ApicMode.X2APIC or reader is None or offset in _NOT_IN_X2APIC:
            raise MsrAccessError(index)
        with a.lock:
            return a.icr if offset == d.APIC_ICR else reader()

    def msr_write(self, index: int, value: int) -> None:
        """WRMSR in x2APIC mode."""
        a = self._lapic
        offset = (index & 0xFF) << 4
        if a.mode is not ApicMode.X2APIC:
            raise MsrAccessError(index, value)
        if offset == d.APIC_ICR:
            if value & _X2APIC_ICR_RESERVED:
                raise MsrAccessError(index, value)
            with a.lock:
                a.icr = value & ~d.ICR_BUSY
                a.send_ipi()
            return
        reserved = self._msr_reserved.get(offset)
        if reserved is None or value & reserved:
            raise MsrAccessError(index, value)
        if offset == d.APIC_LVTT and value & d.LVT_TIMER_MODE == d.LVT_TIMER_MODE:
            raise MsrAccessError(index, value)
        with a.lock:
            if offset == d.APIC_SELF_IPI:
                a.send_self_ipi(value)
            else:
                self._writers[offset](value)

    # ---- registers with a behaviour; the lock is held

    def _version(self) -> int:
        directed = d.APIC_LVR_DIRECTED_EOI if self._lapic.features.directed_eoi else 0
        return d.APIC_VERSION | (NR_LVT_ENTRIES - 1) << 16 | directed

    def _spiv_writable(self) -> int:
        directed = d.SPIV_DIRECTED_EOI if self._lapic.features.directed_eoi else 0
        return 0xFF | d.SPIV_ENABLE | d.SPIV_FOCUS_DISABLED | directed

    def _write_id(self, value: int) -> None:
        self._lapic.id = value >> 24
        self._lapic.recalculate()

    def _write_ldr(self, value: int) -> None:
        self._lapic.ldr = value & 0xFF00_0000
        self._lapic.recalculate()

    def _write_dfr(self, value: int) -> None:
        self._lapic.dfr = value | 0x0FFF_FFFF
        self._lapic.recalculate()

    def _write_spiv(self, value: int) -> None:
        a = self._lapic
        a.spiv = value & self._spiv_writable()
        if not a.spiv & d.SPIV_ENABLE:
            # Disabling by software masks every entry, and they stay masked until enabled (SDM vol. 3, 11.4.7.2).
            a.lvt[:] = [entry | d.LVT_MASKED for entry in a.lvt]
        a.tell_enabled()

    def _write_esr(self, value: int) -> None:
        # A write makes the errors since the last write readable (SDM vol. 3, 11.5.3).
        a = self._lapic
        a.esr, a.esr_pending = a.esr_pending, 0

    def _write_icr_low(self, value: int) -> None:
        a = self._lapic
        a.icr = a.icr >> 32 << 32 | value & ~d.ICR_BUSY
        a.send_ipi()

    def _write_icr_high(self, value: int) -> None:
        a = self._lapic
        a.icr = (value & 0xFF00_0000) << 32 | a.icr & 0xFFFF_FFFF

    def _lvt_value(self, index: int, value: int) -> int:
        value &= _LVT_WRITABLE[index]
        if index == TIMER_ENTRY:
            if not self._lapic.features.tsc_deadline:
                value &= ~d.LVT_TIMER_TSC_DEADLINE
            elif value & d.LVT_TIMER_TSC_DEADLINE:
                value &= ~d.LVT_TIMER_PERIODIC  # both bits together are reserved; the deadline bit wins
        return value

    def _write_lvt(self, index: int, value: int) -> None:
        a = self._lapic
        value = self._lvt_value(index, value)
        if not a.spiv & d.SPIV_ENABLE:
            value |= d.LVT_MASKED
        a.lvt[index] = value | a.lvt[index] & d.LVT_REMOTE_IRR
        if index == TIMER_ENTRY:
            a.timer.set_mode(value)
        elif index == LINT0_ENTRY:
            a.lint0_changed()

    # ---- saved state

    def get_state(self) -> LapicState:
        """Every register at its offset."""
        page = bytearray(KVM_APIC_REG_SIZE)
        with self._lapic.lock:
            for offset, reader in self._readers.items():
                page[offset : offset + 4] = reader().to_bytes(4, "little")
        return LapicState(bytes(page))

    def set_state(self, state: LapicState) -> None:
        """Take over a saved page; bits that no register has are dropped, as writing them would."""
        a, register = self._lapic, state.register
        with a.lock:
            saved_id = register(d.APIC_ID)
            if a.mode is ApicMode.X2APIC and saved_id != a.initial_id:
                raise StateError(f"LapicState: x2APIC id {saved_id:#x} saved, this vCPU's is {a.initial_id:#x}")
            if a.mode is not ApicMode.X2APIC:
                a.id = saved_id >> 24
                a.ldr = register(d.APIC_LDR) & 0xFF00_0000
            a.write_tpr(register(d.APIC_TASKPRI) & 0xFF)
            a.dfr = register(d.APIC_DFR) | 0x0FFF_FFFF
            a.spiv = register(d.APIC_SPIV) & self._spiv_writable()
            a.esr, a.esr_pending = register(d.APIC_ESR) & _ERROR_BITS, 0
            a.icr = self._saved_icr(state)
            for index, offset in enumerate(_LVTS):
                remote_irr = register(offset) & d.LVT_REMOTE_IRR if index == LINT0_ENTRY else 0
                a.lvt[index] = self._lvt_value(index, register(offset)) | remote_irr
            a.restore_vectors(*(_saved_vectors(state, base) for base in (d.APIC_IRR, d.APIC_ISR, d.APIC_TMR)))
            a.timer.reset()
            a.timer.set_divide_configuration(register(d.APIC_TDCR))
            a.timer.set_mode(a.lvt[TIMER_ENTRY])
            a.timer.restore(register(d.APIC_TMICT), register(d.APIC_TMCCT))
            a.state_restored()
            a.tell_enabled()

    def _saved_icr(self, state: LapicState) -> int:
        high = state.register(d.APIC_ICR2)
        if self._lapic.mode is not ApicMode.X2APIC:
            high &= 0xFF00_0000
        return high << 32 | state.register(d.APIC_ICR) & ~d.ICR_BUSY & ~(_X2APIC_ICR_RESERVED & 0xFFFF_FFFF)
