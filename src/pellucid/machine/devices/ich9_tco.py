"""ICH9's TCO watchdog timer (data sheet 316972, 13.9): 32 bytes at PMBASE + 0x60.

The timer counts ticks of 0.6 s down from TCO_TMR and runs unless TCO_TMR_HLT is set. The first time at zero sets
TIMEOUT and raises an SMI, and the timer starts over; the second time in a row sets SECOND_TO_STS and resets the
machine, unless the chipset's NO_REBOOT bit is set. A write to TCO_RLD starts over.

Nothing counts: the timer is a host timer at the time when the count will be zero.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Device, Region, Register, State
from pellucid.machine.state import BOOL, S64
from pellucid.memory import AccessSizes

TICK_NS = 600_000_000
SW_TCO_SMI, TIMEOUT = 0x0002, 0x0008
SECOND_TO_STS, BOOT_STS = 0x0002, 0x0004
TMR_HLT, TCO_LOCK = 0x0800, 0x1000
LEAST_TICKS, TICKS_MASK = 2, 0x3FF
NOT_RUNNING = -1


class Ich9Tco(Device):
    """`raise_smi` hears of the first time-out and of a write to TCO_DAT_IN, `reboot` of the second time-out
    if `may_reboot` says so then.
    """

    kind = "ich9-tco"
    regions = (Region("sm-tco", 32, valid=AccessSizes(1, 4), impl=AccessSizes(1, 2)),)

    reload = Register(0x00, size=2, stored=False, doc="TCO_RLD: a read gives the ticks left, a write starts over")
    data_in = Register(0x02, doc="TCO_DAT_IN, from the operating system to the SMI handler")
    data_out = Register(0x03, doc="TCO_DAT_OUT")
    status_1 = Register(0x04, size=2, doc="TCO1_STS; a written 1 clears")
    status_2 = Register(0x06, size=2, doc="TCO2_STS; a written 1 clears")
    control_1 = Register(0x08, size=2, doc="TCO1_CNT: bit 11 halts, bit 12 locks itself")
    control_2 = Register(0x0A, size=2, reset=0x0008)
    message_1 = Register(0x0C)
    message_2 = Register(0x0D)
    watchdog_status = Register(0x0E)
    software_irq = Register(0x10, reset=0x03)
    timer = Register(0x12, size=2, reset=0x0004, writable=TICKS_MASK, doc="TCO_TMR: ticks to start from")

    deadline = State(S64, NOT_RUNNING, doc="when the count is zero, on the machine's clock; -1 while halted")
    second = State(BOOL, False, doc="the timer has been at zero once since TCO_RLD was last written")

    def __init__(
        self,
        clock: Clock,
        raise_smi: Callable[[], None],
        may_reboot: Callable[[], bool],
        reboot: Callable[[], None],
    ) -> None:
        self._clock, self._raise_smi, self._may_reboot, self._reboot = clock, raise_smi, may_reboot, reboot
        self._due = clock.timer(self._expired)
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._due.cancel()

    def after_load(self) -> None:
        if self.deadline == NOT_RUNNING:
            self._due.cancel()
        else:
            self._due.arm(self.deadline)

    def _start(self) -> None:
        if self.control_1 & TMR_HLT:
            self.deadline = NOT_RUNNING
            self._due.cancel()
            return
        self.deadline = self._clock.now_ns() + max(self.timer & TICKS_MASK, LEAST_TICKS) * TICK_NS
        self._due.arm(self.deadline)

    @reload.on_read
    def _ticks_left(self) -> int:
        if self.deadline == NOT_RUNNING:
            return 0
        return max(self.deadline - self._clock.now_ns(), 0) // TICK_NS & TICKS_MASK

    @reload.on_write
    def _start_over(self, value: int) -> None:
        self.second = False
        self._start()

    @data_in.after_write
    def _data_for_smi(self) -> None:
        self.status_1 |= SW_TCO_SMI
        self._raise_smi()

    @status_1.on_write
    def _clear_status_1(self, value: int) -> None:
        # The second time counts whether or not the first was acknowledged: only TCO_RLD starts over (5.13.1.2).
        self.status_1 &= ~value

    @status_2.on_write
    def _clear_status_2(self, value: int) -> None:
        self.status_2 &= ~value

    @control_1.on_write
    def _write_control_1(self, value: int) -> None:
        locked = self.control_1 & TCO_LOCK
        halted = self.control_1 & TMR_HLT
        self.control_1 = (value | locked) & 0xFFFF
        if halted != self.control_1 & TMR_HLT or self.deadline == NOT_RUNNING:
            self._start()

    def _expired(self) -> None:
        self.status_1 |= TIMEOUT
        self.second = not self.second
        if not self.second:
            self.status_2 |= SECOND_TO_STS | BOOT_STS
            if self._may_reboot():
                self.deadline = NOT_RUNNING
                self._reboot()
                return
        self._raise_smi()
        self._start()
