"""Suspend to RAM on a PC: what is left for firmware to find at the next reset, and what ends the sleep."""

from pellucid.machine.devices.acpi_pm import AcpiPm
from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.machine.devices.rtc import Rtc
from pellucid.runtime.requests import WakeReason
from pellucid.runtime.run_state import RunState
from pellucid.runtime.system import System

CMOS_SHUTDOWN_CODE, RESUME = 0x0F, 0xFE
"""By this byte firmware tells a wake-up from a start, and goes to the vector that the kernel left in the FACS."""


def wire_sleep(system: System, power: AcpiPm, rtc: Rtc, keyboard: KeyboardController) -> None:
    """Let a key, the mouse, and an RTC alarm or a turn of the PM timer that the guest enabled wake the machine.

    The power button does not, as in QEMU: `system_powerdown` leaves a suspended machine asleep.
    """

    def event(reason: WakeReason) -> None:
        if system.run_state.state is RunState.SUSPENDED and power.wakes(reason):
            system.request_wakeup(reason)

    system.on_powerdown.append(power.press_power_button)
    system.on_suspend.append(lambda: rtc.set_cmos(CMOS_SHUTDOWN_CODE, RESUME))
    system.on_wakeup.append(power.wake)
    power.on_overflow.append(lambda: event(WakeReason.PM_TIMER))
    rtc.on_alarm.append(lambda: event(WakeReason.RTC))
    keyboard.on_input.append(lambda: event(WakeReason.OTHER))
