"""The events of a soft vCPU as KVM_GET_VCPU_EVENTS gives them: what waits, what is blocked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.cpu.state import RFLAGS_IF
from pellucid.kvm.events import Interruptibility, InterruptShadow, PendingEvents, VcpuEvents, save_events
from pellucid.records import replace

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu


def get_events(vcpu: SoftVcpu, pending: PendingEvents) -> VcpuEvents:
    """What waits in `pending`, and the processor's and the local APIC's part."""
    state = vcpu.state
    pending.nmi_pending = int(state.nmi_pending)
    shadow = InterruptShadow.STI if state.shadow else InterruptShadow.NONE
    blocked = Interruptibility(bool(state.flags & RFLAGS_IF), bool(state.nmi_blocked), shadow, bool(state.smm))
    return replace(save_events(pending, blocked), smi_smm_inside_nmi=int(state.smm_inside_nmi),
                   smi_latched_init=int(vcpu.lapic.init_pending))


def set_events(vcpu: SoftVcpu, events: VcpuEvents) -> PendingEvents:
    """Take over saved events; those that wait."""
    state = vcpu.state
    state.nmi_blocked, state.shadow = events.nmi_masked, int(bool(events.interrupt_shadow))
    vcpu.processor.set_smm(bool(events.smi_smm))
    state.smm_inside_nmi, vcpu.lapic.init_pending = events.smi_smm_inside_nmi, bool(events.smi_latched_init)
    pending = events.to_pending()
    state.nmi_posted, state.nmi_pending = 0, pending.nmi_pending
    return pending
