"""Fault reasons (tables 7-1 and 7-2), the fault record (7.2), and the two events that a unit sends as messages.

A unit has one record here, as QEMU's. A fault that comes while the record is full is lost, and overflow is set, unless
it is of the same source. The fault event is sent when the first cause appears; while one is pending none follows.
"""

import enum
import threading
from collections.abc import Callable

from pellucid.machine.vtd import registers as reg
from pellucid.machine.vtd.registers import RegisterFile


class Reason(enum.IntEnum):
    """Why a request was blocked."""

    ROOT_NOT_PRESENT = 0x01
    CONTEXT_NOT_PRESENT = 0x02
    CONTEXT_INVALID = 0x03
    ADDRESS_BEYOND = 0x04
    NO_WRITE = 0x05
    NO_READ = 0x06
    TABLE_ACCESS = 0x07
    ROOT_ACCESS = 0x08
    CONTEXT_ACCESS = 0x09
    ROOT_RESERVED = 0x0A
    CONTEXT_RESERVED = 0x0B
    TABLE_RESERVED = 0x0C
    REQUEST_RESERVED = 0x20
    INDEX_BEYOND = 0x21
    ENTRY_NOT_PRESENT = 0x22
    ENTRY_ACCESS = 0x23
    ENTRY_RESERVED = 0x24
    COMPATIBILITY_BLOCKED = 0x25
    SOURCE_REFUSED = 0x26


ALWAYS_RECORDED = frozenset((
    Reason.ROOT_NOT_PRESENT, Reason.CONTEXT_NOT_PRESENT, Reason.ROOT_ACCESS, Reason.CONTEXT_ACCESS,
    Reason.ROOT_RESERVED, Reason.CONTEXT_RESERVED, Reason.REQUEST_RESERVED, Reason.INDEX_BEYOND, Reason.ENTRY_ACCESS,
    Reason.COMPATIBILITY_BLOCKED,
))  # fmt: skip
"""The others are qualified: an entry's "fault processing disable" keeps them from being recorded."""


class FaultError(Exception):
    """A request was blocked; `silent`: by an entry that does not want it recorded."""

    def __init__(self, reason: Reason, *, silent: bool = False) -> None:
        super().__init__(reason.name)
        self.reason, self.silent = reason, silent and reason not in ALWAYS_RECORDED


class Events:
    """Records faults and sends the messages. Callable from any thread: an IOAPIC's message faults on its own."""

    def __init__(self, registers: RegisterFile, send: Callable[[int, int], object]) -> None:
        self._registers, self._send = registers, send
        self.lock = threading.Lock()
        """Held by whoever changes a register of these; nobody calls out with it."""

    def record(self, reason: Reason, source: int, information: int, *, is_read: bool) -> None:
        """Record a fault of `source` (7.2.1): `information` is the page's address, or an interrupt's index << 48."""
        regs = self._registers
        with self.lock:
            before = regs.get(reg.FAULT_STATUS)
            if before & reg.FAULT_OVERFLOW:
                return
            record = regs.get(reg.FAULT_RECORD + 8, 8)
            if record & reg.RECORD_FAULT:
                if record & 0xFFFF == source:
                    return
                after = before | reg.FAULT_OVERFLOW
            else:
                regs.put(reg.FAULT_RECORD, information & ~0xFFF, 8)
                kind = reg.RECORD_IS_READ if is_read else 0
                regs.put(reg.FAULT_RECORD + 8, source | reason << 32 | kind | reg.RECORD_FAULT, 8)
                after = before | reg.FAULT_PENDING
            regs.put(reg.FAULT_STATUS, after)
        self._fault_event(before)

    def queue_error(self) -> None:
        """A descriptor was wrong (7.3): the queue stands still until software clears it."""
        with self.lock:
            before = self._registers.get(reg.FAULT_STATUS)
            self._registers.put(reg.FAULT_STATUS, before | reg.QUEUE_ERROR)
        self._fault_event(before)

    def _fault_event(self, before: int) -> None:
        if not before & reg.FAULT_CAUSES:
            self._raise(reg.FAULT_CONTROL, reg.FAULT_DATA, reg.FAULT_ADDRESS)

    def wait_completed(self) -> None:
        """A wait descriptor with its interrupt flag was reached (6.5.2.8)."""
        if not self._registers.get(reg.DONE_STATUS) & reg.WAIT_COMPLETE:
            self._registers.change(reg.DONE_STATUS, 0, reg.WAIT_COMPLETE)
            self._raise(reg.DONE_CONTROL, reg.DONE_DATA, reg.DONE_ADDRESS)

    def _raise(self, control: int, data: int, address: int) -> None:
        """Send the event, or leave it pending while it is masked."""
        regs = self._registers
        with self.lock:
            value = regs.change(control, 0, reg.EVENT_PENDING)
            if value & reg.EVENT_MASKED:
                return
            regs.change(control, reg.EVENT_PENDING, 0)
            message = regs.get(address, 8), regs.get(data)
        # Unlocked: the message takes the interrupt chips' lock, under which an IOAPIC's fault comes here.
        self._send(*message)

    def control_written(self, control: int, data: int, address: int) -> None:
        """A mask bit may have been cleared: what is pending is sent."""
        if self._registers.get(control) & (reg.EVENT_MASKED | reg.EVENT_PENDING) == reg.EVENT_PENDING:
            self._raise(control, data, address)

    def status_written(self) -> None:
        """Causes may have been cleared: with the last of them goes a pending event."""
        regs = self._registers
        with self.lock:
            pending = regs.get(reg.FAULT_RECORD + 8, 8) & reg.RECORD_FAULT
            status = regs.change(reg.FAULT_STATUS, reg.FAULT_PENDING, reg.FAULT_PENDING if pending else 0)
            if not status & reg.FAULT_CAUSES:
                regs.change(reg.FAULT_CONTROL, reg.EVENT_PENDING, 0)
            if not regs.get(reg.DONE_STATUS) & reg.WAIT_COMPLETE:
                regs.change(reg.DONE_CONTROL, reg.EVENT_PENDING, 0)
