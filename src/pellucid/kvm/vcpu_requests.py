"""The request word of a vCPU: what other threads (and the vCPU itself) want done before the guest is entered again.

KVM's names and numbers. A request is a bit number; making one twice before it is served is making it once. The vCPU
loop asks `pending` with one attribute read, then serves bits one by one with `check`, which clears the bit *before* the
work is done, so a request made during the work is not lost (KVM: Documentation/virt/kvm/vcpu-requests).
"""

import threading

KVM_REQ_TLB_FLUSH = 0
KVM_REQ_VM_DEAD = 1
KVM_REQ_UNBLOCK = 2
KVM_REQ_DIRTY_RING_SOFT_FULL = 3

_ARCH_BASE = 8
KVM_REQ_MIGRATE_TIMER = _ARCH_BASE + 0
KVM_REQ_REPORT_TPR_ACCESS = _ARCH_BASE + 1
KVM_REQ_TRIPLE_FAULT = _ARCH_BASE + 2
KVM_REQ_MMU_SYNC = _ARCH_BASE + 3
KVM_REQ_CLOCK_UPDATE = _ARCH_BASE + 4
KVM_REQ_LOAD_MMU_PGD = _ARCH_BASE + 5
KVM_REQ_EVENT = _ARCH_BASE + 6
KVM_REQ_APF_HALT = _ARCH_BASE + 7
KVM_REQ_STEAL_UPDATE = _ARCH_BASE + 8
KVM_REQ_NMI = _ARCH_BASE + 9
KVM_REQ_PMU = _ARCH_BASE + 10
KVM_REQ_PMI = _ARCH_BASE + 11
KVM_REQ_SMI = _ARCH_BASE + 12
KVM_REQ_MASTERCLOCK_UPDATE = _ARCH_BASE + 13
KVM_REQ_SCAN_IOAPIC = _ARCH_BASE + 15
KVM_REQ_GLOBAL_CLOCK_UPDATE = _ARCH_BASE + 16
KVM_REQ_APIC_PAGE_RELOAD = _ARCH_BASE + 17
KVM_REQ_IOAPIC_EOI_EXIT = _ARCH_BASE + 19
KVM_REQ_LOAD_EOI_EXITMAP = _ARCH_BASE + 23
KVM_REQ_APICV_UPDATE = _ARCH_BASE + 25
KVM_REQ_TLB_FLUSH_CURRENT = _ARCH_BASE + 26
KVM_REQ_TLB_FLUSH_GUEST = _ARCH_BASE + 27
KVM_REQ_APF_READY = _ARCH_BASE + 28

KVM_REQUEST_NAMES: dict[int, str] = {
    value: name for name, value in list(globals().items()) if name.startswith("KVM_REQ_")
}
"""Request names by bit number, for traces."""


class VcpuRequests:
    """A set of request bits that any thread may add to and one thread serves.

    Updates take a lock because `word |= bit` is a read and a write, and another thread may run between them; reads of
    `word` need none.
    """

    __slots__ = ("_lock", "word")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.word = 0
        """The pending requests as a bit set; read it freely, change it through the methods only."""

    def make(self, request: int) -> bool:
        """Set bit `request`; True when it was not set before (kvm_make_request). The caller kicks the vCPU."""
        mask = 1 << request
        with self._lock:
            if self.word & mask:
                return False
            self.word |= mask
            return True

    def pending(self) -> bool:
        """Whether any request is set (kvm_request_pending)."""
        return self.word != 0

    def test(self, request: int) -> bool:
        """Whether bit `request` is set; leaves it (kvm_test_request)."""
        return bool(self.word >> request & 1)

    def check(self, request: int) -> bool:
        """Whether bit `request` was set; clears it (kvm_check_request). The caller then does the work."""
        mask = 1 << request
        if not self.word & mask:
            return False
        with self._lock:
            if not self.word & mask:
                return False
            self.word ^= mask
            return True

    def clear(self, request: int) -> None:
        """Drop bit `request` (kvm_clear_request)."""
        with self._lock:
            self.word &= ~(1 << request)

    def take(self) -> int:
        """All pending requests as a bit set, cleared in one step."""
        if not self.word:
            return 0
        with self._lock:
            word, self.word = self.word, 0
            return word

    def names(self) -> list[str]:
        """The pending requests by name, lowest bit first, for traces."""
        word = self.word
        return [KVM_REQUEST_NAMES.get(bit, f"request {bit}") for bit in range(word.bit_length()) if word >> bit & 1]
