"""What makes the machine go: the main loop, the clocks, the vCPU threads, the big lock and the run states.

Lock order, outermost first: the big lock (`BigLock`, QEMU's BQL), then a VM's irqchip lock, then the private locks of
the clocks. Nothing here calls back while it holds a private lock.
"""

from pellucid.runtime.bql import BigLock
from pellucid.runtime.clock import HostClock, LockedClock, SteppedClock, VirtualClock
from pellucid.runtime.instruction_clock import InstructionClock
from pellucid.runtime.main_loop import MainLoop
from pellucid.runtime.requests import PanicAction, ShutdownCause, SystemRequests, WakeReason
from pellucid.runtime.run_state import InvalidTransition, RunState, RunStateMachine
from pellucid.runtime.system import System
from pellucid.runtime.vcpu_group import VcpuGroup
from pellucid.runtime.vcpu_thread import Outcome, VcpuThread, outcome_of

__all__ = [
    "BigLock",
    "HostClock",
    "InstructionClock",
    "InvalidTransition",
    "LockedClock",
    "MainLoop",
    "Outcome",
    "PanicAction",
    "RunState",
    "RunStateMachine",
    "ShutdownCause",
    "SteppedClock",
    "System",
    "SystemRequests",
    "VcpuGroup",
    "VcpuThread",
    "VirtualClock",
    "WakeReason",
    "outcome_of",
]
