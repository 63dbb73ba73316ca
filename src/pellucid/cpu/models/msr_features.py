"""Features told of by MSRs, or by leaves of which `features` has no word, by QEMU's names: asking for one is answered.

The places are those that QEMU 7.2 names when it lacks one.
"""

from collections.abc import Collection

_BITS = {
    "MSR(345H)": "full-width-write:13",
    "MSR(48BH)": "vmx-apicv-xapic:0 vmx-ept:1 vmx-desc-exit:2 vmx-rdtscp-exit:3 vmx-apicv-x2apic:4 vmx-vpid:5 "
    "vmx-wbinvd-exit:6 vmx-unrestricted-guest:7 vmx-apicv-register:8 vmx-apicv-vid:9 vmx-ple:10 "
    "vmx-rdrand-exit:11 vmx-invpcid-exit:12 vmx-vmfunc:13 vmx-shadow-vmcs:14 vmx-encls-exit:15 "
    "vmx-rdseed-exit:16 vmx-pml:17 vmx-xsaves:20 vmx-tsc-scaling:25",
    "CPUID.14H:ECX": "intel-pt-lip:31",
    "MSR(10AH)": "rdctl-no:0 ibrs-all:1 rsba:2 skip-l1dfl-vmentry:3 ssb-no:4 mds-no:5 pschange-mc-no:6 "
    "tsx-ctrl:7 taa-no:8",
    "MSR(CFH)": "split-lock-detect:5",
    "MSR(48EH)": "vmx-vintr-pending:2 vmx-tsc-offset:3 vmx-hlt-exit:7 vmx-invlpg-exit:9 vmx-mwait-exit:10 "
    "vmx-rdpmc-exit:11 vmx-rdtsc-exit:12 vmx-cr3-load-noexit:15 vmx-cr3-store-noexit:16 vmx-cr8-load-exit:19 "
    "vmx-cr8-store-exit:20 vmx-flexpriority:21 vmx-vnmi-pending:22 vmx-movdr-exit:23 vmx-io-exit:24 "
    "vmx-io-bitmap:25 vmx-mtf:27 vmx-msr-bitmap:28 vmx-monitor-exit:29 vmx-pause-exit:30 "
    "vmx-secondary-ctls:31",
    "MSR(48DH)": "vmx-intr-exit:0 vmx-nmi-exit:3 vmx-vnmi:5 vmx-preemption-timer:6 vmx-posted-intr:7",
    "MSR(48FH)": "vmx-exit-nosave-debugctl:2 vmx-exit-load-perf-global-ctrl:12 vmx-exit-ack-intr:15 "
    "vmx-exit-save-pat:18 vmx-exit-load-pat:19 vmx-exit-save-efer:20 vmx-exit-load-efer:21 "
    "vmx-exit-save-preemption-timer:22 vmx-exit-clear-bndcfgs:23 vmx-exit-clear-rtit-ctl:25 vmx-exit-load-pkrs:29",
    "MSR(490H)": "vmx-entry-noload-debugctl:2 vmx-entry-ia32e-mode:9 vmx-entry-load-perf-global-ctrl:13 "
    "vmx-entry-load-pat:14 vmx-entry-load-efer:15 vmx-entry-load-bndcfgs:16 vmx-entry-load-rtit-ctl:18 "
    "vmx-entry-load-pkrs:22",
    "MSR(485H)": "vmx-store-lma:5 vmx-activity-hlt:6 vmx-activity-shutdown:7 vmx-activity-wait-sipi:8 "
    "vmx-vmwrite-vmexit-fields:29 vmx-zero-len-inject:30",
    "MSR(48CH)": "vmx-ept-execonly:0 vmx-page-walk-4:6 vmx-page-walk-5:7 vmx-ept-2mb:16 vmx-ept-1gb:17 vmx-invept:20 "
    "vmx-eptad:21 vmx-ept-advanced-exitinfo:22 vmx-invept-all-context:26 vmx-invvpid:32 "
    "vmx-invvpid-single-addr:40 vmx-invept-single-context:41 vmx-invvpid-all-context:42 "
    "vmx-invept-single-context-noglobals:43",
    "MSR(480H)": "vmx-ins-outs:54 vmx-true-ctls:55",
    "MSR(491H)": "vmx-eptp-switching:0",
    "CPUID.12H:EAX": "sgx1:0 sgx-debug:1 sgx2:1 sgx-mode64:2 sgx-provisionkey:4 sgx-tokenkey:5 sgx-kss:7",
    "CPUID.12H:EBX": "sgx-exinfo:0",
}

OTHER_FEATURES: dict[str, tuple[str, int]] = {
    word.partition(":")[0]: (place, int(word.partition(":")[2]))
    for place, words in _BITS.items() for word in words.split()
}
"""Name to place, as QEMU spells it, and bit."""

CAPABILITY_MSRS = {0x10A: "MSR(10AH)", 0xCF: "MSR(CFH)"}
"""IA32_ARCH_CAPABILITIES and IA32_CORE_CAPABILITIES: a processor has of them what its model has."""
UNNAMED_CAPABILITIES = {0x10A: 0x4000_0000_0D10_E000, 0xCF: 1 << 4}
"""Their bits that QEMU 7.2 has no name for, and that hold here whatever the model: see `kvm.backends.soft.msrs`."""


def capabilities(features: Collection[str]) -> dict[int, int]:
    """What the capability MSRs of a model with these features say."""
    found = dict(UNNAMED_CAPABILITIES)
    for index, place in CAPABILITY_MSRS.items():
        for name in features:
            where, bit = OTHER_FEATURES.get(name, ("", 0))
            found[index] |= (1 << bit) * (where == place)
    return found
