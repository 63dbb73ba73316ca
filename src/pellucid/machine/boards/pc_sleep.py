"""Suspend to RAM on a PC: what is left for firmware to find at the next reset, and what ends the sleep."""

from typing import Protocol

from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.rtc import Rtc
from pellucid.runtime.requests import WakeReason
from pellucid.runtime.run_state import RunState
from pellucid.runtime.system import System

CMOS_SHUTDOWN_CODE, RESUME = 0x0F, 0xFE
"""By this byte firmware tells a wake-up from a start, and goes to the vector that the kernel left in the FACS."""


class PowerManagement(Protocol):
    """The device with the PM1 registers."""

    def press_power_button(self) -> None: ...
    def wake(self, reason: WakeReason) -> None: ...
    def wakes(self, reason: WakeReason) -> bool: ...


def wire_sleep(system: System, power: PowerManagement, rtc: Rtc, keyboard: KeyboardController) -> None:
    """Let the power button, a key, the mouse, and an RTC alarm that the guest enabled wake the machine.

    QEMU's `system_powerdown` leaves a suspended machine asleep; here the button does what it does on a desk.
    """

    def event(reason: WakeReason) -> None:
        if system.run_state.state is RunState.SUSPENDED and power.wakes(reason):
            system.request_wakeup(reason)

    def button() -> None:
        power.press_power_button()
        event(WakeReason.OTHER)

    system.on_powerdown.append(button)
    system.on_suspend.append(lambda: rtc.set_cmos(CMOS_SHUTDOWN_CODE, RESUME))
    system.on_wakeup.append(power.wake)
    rtc.on_alarm.append(lambda: event(WakeReason.RTC))
    keyboard.on_input.append(lambda: event(WakeReason.OTHER))
