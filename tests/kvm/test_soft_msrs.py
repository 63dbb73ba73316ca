"""MSRs of a soft vCPU that its CPUID decides about."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from pellucid.cpu.models import resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.kvm.api import MSR_KVM_INTERNAL_GUEST_SSP
from pellucid.kvm.backends.soft.report import refused_msr
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import MSR_LASTBRANCH_TOS
from pellucid.kvm.regs import CpuidEntry
from pellucid.machine.power_on import RESET_MSRS

from .test_soft_smp import Guest

IA32_U_CET, IA32_S_CET, SSP_TABLE = 0x6A0, 0x6A2, 0x6A8
IA32_PKRS, IA32_MTRRCAP, AMD_SELECT, AMD_COUNTER = 0x6E1, 0xFE, 0xC001_0000, 0xC001_0004
WIDE = 0xFFAA_AAAA_AAAA_AAAA


@pytest.fixture
def vcpu() -> Iterator[SoftVcpu]:
    guest = Guest(1)
    yield guest.vcpus[0]
    guest.close()


def be(vcpu: SoftVcpu, model: str, **features: bool) -> SoftVcpu:
    found = cpuid_leaves(resolve(model, features).model, 0, CpuTopology())
    vcpu.set_cpuid([CpuidEntry(e.function, e.index, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in found])
    return vcpu


def test_pkrs(vcpu: SoftVcpu) -> None:
    be(vcpu, "max").msrs.write(IA32_PKRS, 0xFFFF_FFFF)
    assert vcpu.msrs.read(IA32_PKRS) == 0xFFFF_FFFF == vcpu.state.pkrs and vcpu.state.cr4_allowed >> 24 & 1
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(IA32_PKRS, 1 << 32)
    with pytest.raises(MsrAccessError):
        be(vcpu, "qemu64").msrs.read(IA32_PKRS)
    assert not vcpu.state.cr4_allowed >> 24 & 1


def test_control_flow_enforcement(vcpu: SoftVcpu) -> None:
    be(vcpu, "max")
    for index in (IA32_U_CET, IA32_S_CET):
        for value in (0xC3F & ~0x800, 0x83F, 0x7FFF_FFFF_F000):
            vcpu.msrs.write(index, value)
            assert vcpu.msrs.read(index) == value
        for value in (0x40, 0x200, 0xC00, 1 << 62):
            with pytest.raises(MsrAccessError):
                vcpu.msrs.write(index, value)
        vcpu.msrs.write(index, 0)
    for index in range(0x6A4, 0x6A8):
        vcpu.msrs.write(index, 0x1234_5674)
        assert vcpu.msrs.read(index) == 0x1234_5674
        for value in (1, 2, 1 << 62):
            with pytest.raises(MsrAccessError):
                vcpu.msrs.write(index, value)
    vcpu.msrs.write(SSP_TABLE, 0x1001)
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(SSP_TABLE, 1 << 62)
    assert vcpu.state.cr4_allowed >> 23 & 1


@pytest.mark.parametrize(("features", "allowed", "refused"), [
    ({"shstk": False}, 0x83C, 1), ({"ibt": False}, 3, 4), ({"shstk": False, "ibt": False}, 0, 0)])
def test_half_of_enforcement(vcpu: SoftVcpu, features: dict[str, bool], allowed: int, refused: int) -> None:
    be(vcpu, "max", **features)
    if not allowed:
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(IA32_U_CET)
        assert not vcpu.state.cr4_allowed >> 23 & 1
        return
    vcpu.msrs.write(IA32_U_CET, allowed)
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(IA32_U_CET, refused)
    if "shstk" in features:
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(0x6A4)
    assert vcpu.state.cr4_allowed >> 23 & 1


def test_default_model_leaves_enforcement_out(vcpu: SoftVcpu) -> None:
    with pytest.raises(MsrAccessError):
        be(vcpu, "pellucid").msrs.read(IA32_S_CET)


@pytest.mark.parametrize("index", [0x175, 0x176, 0xC000_0082, 0xC000_0083, 0xC000_0100, 0xC000_0101, 0xC000_0102])
def test_addresses_are_as_wide_as_cpuid_tells(vcpu: SoftVcpu, index: int) -> None:
    be(vcpu, "max").msrs.write(index, WIDE)
    assert vcpu.msrs.read(index) == WIDE, "CR4.LA57 is clear"
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(index, 0xAAAA_AAAA_AAAA_AAAA)
    with pytest.raises(MsrAccessError):
        be(vcpu, "qemu64").msrs.write(index, WIDE)


def test_amd_counters(vcpu: SoftVcpu) -> None:
    """They are there by the architecture, and count nothing: they take anything and read as 0, as QEMU's do."""
    be(vcpu, "Opteron_G1")
    for index in (AMD_SELECT, AMD_SELECT + 3, AMD_COUNTER, AMD_COUNTER + 3):
        vcpu.msrs.write(index, 1 << 22 | 0xC0)
        assert vcpu.msrs.read(index) == 0
    be(vcpu, "qemu64")
    with pytest.raises(MsrAccessError):
        vcpu.msrs.read(AMD_SELECT)


def test_memory_type_ranges(vcpu: SoftVcpu) -> None:
    """They keep what may be written, refuse the rest, and are not there without CPUID's bit."""
    be(vcpu, "max")
    assert vcpu.msrs.read(IA32_MTRRCAP) == 0x508
    for index, value, refused in (
        (0x200, 0xC000_0001, 0xC000_0002),
        (0x20F, 0xFF_C000_0800, 1 << 40 | 0x800),
        (0x26F, 0x0605_0401_0006_0606, 7),
        (0x2FF, 0xC06, 0x1000),
    ):
        vcpu.msrs.write(index, value)
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, refused)
        assert vcpu.msrs.read(index) == value
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(IA32_MTRRCAP, 0x508)
    for index in (0x210, 0x1F2, 0x1F3):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)
    be(vcpu, "max", mtrr=False, pat=False)
    for index in (IA32_MTRRCAP, 0x200, 0x250, 0x2FF, 0x277):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)


def test_refused_msrs_are_logged(vcpu: SoftVcpu, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, by the logger that -d guest_errors opens."""
    with caplog.at_level(logging.DEBUG, "pellucid.kvm.msr"):
        for _ in range(2):
            refused_msr(MsrAccessError(0xDEAD, 5))
    assert [record.getMessage() for record in caplog.records] == ["WRMSR of 0x5 to 0xdead raises #GP(0)"]


def test_split_lock_control(vcpu: SoftVcpu) -> None:
    """IA32_CORE_CAPABILITIES tells of each bit of MSR_MEMORY_CTRL; CPUID tells of both."""
    be(vcpu, "max")
    assert vcpu.msrs.read(0xCF) == 3 << 4 and vcpu.msrs.read(0x33) == 0
    for bits in (1, 2, 3, 0):
        vcpu.msrs.write(0x33, bits << 28)
        assert vcpu.msrs.read(0x33) == bits << 28
        assert vcpu.state.uc_lock == vcpu.state.lock_types == bits & 1 and vcpu.state.split_lock == bits >> 1
    for index, value in ((0x33, 1 << 30), (0x33, 1), (0xCF, 1 << 5)):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, value)
    vcpu.msrs.write(0xCF, 1 << 5, host_initiated=True)
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(0x33, 1 << 28)
    vcpu.msrs.write(0xCF, 3 << 4, host_initiated=True)
    be(vcpu, "max", **{"core-capability": False})
    for index in (0x33, 0xCF):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)


def test_capabilities_are_what_was_set(vcpu: SoftVcpu) -> None:
    """From outside, and less than all; a guest cannot, and what is not built is refused."""
    be(vcpu, "max")
    everything = vcpu.msrs.read(0x10A)
    assert everything & 0x1FF == 0x1FB and everything & ~0x1FF
    vcpu.set_msrs({0x10A: 0xA, 0xCF: 0})
    assert vcpu.msrs.read(0x10A) == 0xA and vcpu.msrs.read(0xCF) == 0
    for index in (0x33, 0x122):   # what they no longer tell of
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, 0)
    for index, value, outside in ((0x10A, 4, True), (0xCF, 1, True), (0x10A, 0, False)):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, value, host_initiated=outside)
    be(vcpu, "max", **{"arch-capabilities": False})
    with pytest.raises(MsrAccessError):
        vcpu.msrs.read(0x10A)


def test_the_shadow_stack_pointer_is_told_outside_only(vcpu: SoftVcpu) -> None:
    be(vcpu, "max")
    vcpu.set_msrs({MSR_KVM_INTERNAL_GUEST_SSP: 0x1238})
    assert vcpu.state.ssp == 0x1238 and vcpu.get_msrs([MSR_KVM_INTERNAL_GUEST_SSP]) == {0x4B56_4DFF: 0x1238}
    with pytest.raises(MsrAccessError):
        vcpu.msrs.read(MSR_KVM_INTERNAL_GUEST_SSP)
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(MSR_KVM_INTERNAL_GUEST_SSP, 0)
    be(vcpu, "max", shstk=False)
    with pytest.raises(MsrAccessError):
        vcpu.get_msrs([MSR_KVM_INTERNAL_GUEST_SSP])


def test_what_guests_read_without_asking(vcpu: SoftVcpu) -> None:
    """As on KVM: they are there whatever the model, AMD's on AMD's; writes are refused, or do nothing."""
    for model, index, value in (
            ("Haswell", 0x2A, 0), ("Haswell", 0x198, 4 << 40 | 1000), ("EPYC", 0xCD, 3), ("Haswell", 0x611, 0),
            ("EPYC", 0xC001_0015, 1 << 24), ("EPYC", 0xC001_001B, 0x2000_0000), ("EPYC", 0xC001_0112, 0)):
        assert be(vcpu, model).msrs.read(index) == value
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, 1)
    be(vcpu, "EPYC").msrs.write(0xC001_0020, 0x1234_5678)
    vcpu.msrs.write(0x11E, 7)
    assert vcpu.msrs.read(0x11E) == 0xBE70_2111
    be(vcpu, "Haswell")
    for index in (0xC001_0015, 0xC001_0112, 0xC001_0020):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, 0)


def test_some_of_misc_enable_is_read_only(vcpu: SoftVcpu) -> None:
    """As on KVM: bits 11 and 12 refuse a change, bit 7 ignores one."""
    be(vcpu, "max").pmu.show(8, 7, False)
    before = vcpu.msrs.read(0x1A0)
    assert before & 0x1880 == 0x1880
    vcpu.msrs.write(0x1A0, before & ~0x80 | 1 << 16)
    assert vcpu.msrs.read(0x1A0) == before | 1 << 16
    for bit in (11, 12):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(0x1A0, before & ~(1 << bit))
    be(vcpu, "Haswell").pmu.show(0, 0, False)
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(0x1A0, vcpu.msrs.read(0x1A0) | 1 << 11)


def test_amd_configuration(vcpu: SoftVcpu) -> None:
    """What Linux asks AMD's processors for without a net; Intel's have none of it."""
    be(vcpu, "EPYC")
    assert [vcpu.msrs.read(index) for index in (0xC001_0010, 0xC001_001F, 0xC001_1029)] == [0, 0, 2]
    vcpu.msrs.write(0xC001_001F, 1 << 46)
    assert vcpu.msrs.read(0xC001_001F) == 1 << 46
    vcpu.msrs.write(0xC001_0010, 0)
    for index, value in ((0xC001_0010, 1 << 19), (0xC001_1029, 1)):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(index, value)
    be(vcpu, "Haswell")
    for index in (0xC001_0010, 0xC001_001F, 0xC001_1029):
        with pytest.raises(MsrAccessError):
            vcpu.msrs.read(index)


@pytest.mark.parametrize(("features", "bits"), [
    ({"ibrs": True}, 1), ({"spec-ctrl": True}, 1), ({"amd-stibp": True}, 2), ({"stibp": True}, 2), ({"ssbd": True}, 4),
    ({"amd-ssbd": True}, 4), ({"bhi-ctrl": True}, 0x400), ({}, 0)])
def test_speculation_control_has_the_bits_of_cpuid(vcpu: SoftVcpu, features: dict[str, bool], bits: int) -> None:
    be(vcpu, "EPYC-v1", **features)
    for bit in (1, 2, 4, 0x400, 8):
        if bit & bits:
            vcpu.msrs.write(0x48, bit)
            assert vcpu.msrs.read(0x48) == bit
        else:
            with pytest.raises(MsrAccessError):
                vcpu.msrs.write(0x48, bit)
    if not features:
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(0x49, 1)
    be(vcpu, "EPYC-v2").msrs.write(0x49, 1)


def test_no_erratum_has_a_workaround(vcpu: SoftVcpu) -> None:
    be(vcpu, "EPYC")
    assert vcpu.msrs.read(0xC001_0140) == vcpu.msrs.read(0xC001_0141) == 0
    with pytest.raises(MsrAccessError):
        be(vcpu, "EPYC", osvw=False).msrs.read(0xC001_0140)


def test_supervisor_components(vcpu: SoftVcpu) -> None:
    """IA32_XSS takes what leaf 0xD tells of; without XSAVES it is not there."""
    be(vcpu, "max").msrs.write(0xDA0, vcpu.state.xss_allowed)
    assert vcpu.msrs.read(0xDA0) == vcpu.state.xss_allowed
    with pytest.raises(MsrAccessError):
        vcpu.msrs.write(0xDA0, 1 << 8)
    with pytest.raises(MsrAccessError):
        be(vcpu, "max", xsaves=False).msrs.read(0xDA0)


def test_fast_fxsave_needs_its_feature(vcpu: SoftVcpu) -> None:
    efer, ffxsr = 0xC000_0080, 1 << 14
    be(vcpu, "EPYC").msrs.write(efer, ffxsr)
    assert vcpu.msrs.read(efer) & ffxsr
    with pytest.raises(MsrAccessError):
        be(vcpu, "Haswell").msrs.write(efer, ffxsr)


@pytest.mark.parametrize("model", ["qemu64", "max", "EPYC"])
def test_what_a_reset_puts_back_is_taken(vcpu: SoftVcpu, model: str) -> None:
    """Every MSR of the power-on state can be set to what was read from it; a guest may not write a constant."""
    be(vcpu, model)
    for index in RESET_MSRS:
        try:
            value = vcpu.msrs.read(index, True)
        except MsrAccessError:
            continue
        vcpu.set_msrs({index: value})
    if not vcpu.lbr.present:
        with pytest.raises(MsrAccessError):
            vcpu.msrs.write(MSR_LASTBRANCH_TOS, 0)
