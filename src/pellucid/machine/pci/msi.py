"""Capabilities that many functions have: MSI, MSI-X (PCI 3.0, 6.8) and power management (PCI PM 1.2, 3.2)."""

from pellucid.machine.pci.bar import Bar
from pellucid.machine.pci.config import CAP_MSI, CAP_MSIX, CAP_POWER_MANAGEMENT
from pellucid.machine.pci.function import Capability, PciFunction
from pellucid.memory import AccessSizes, MemoryRegion

MSI_ENABLE, MSI_GRANTED, MSI_64_BIT, MSI_MASKING = 0x0001, 0x0070, 0x0080, 0x0100
MSIX_ENABLE, MSIX_FUNCTION_MASK, MSIX_SIZE = 0x8000, 0x4000, 12
MSIX_ENTRY, MSIX_MASKED = 16, 1
PM_SIZE = 8
"""Largest capability and table sizes come from the declarations, never from the guest."""


class PowerManagement(Capability):
    """Version 3, D0 and D3hot, no PME. The state is only kept."""

    id = CAP_POWER_MANAGEMENT

    def __init__(self, function: PciFunction, offset: int, *, state: int = 0x0008, writable: int = 0x0003) -> None:
        function.add_capability(offset, PM_SIZE, self)
        function.put_template(offset + 2, 2, 0x0003)
        function.put_template(offset + 4, 2, state, writable=writable)


class Msi(Capability):
    """`vectors` messages (a power of two up to 32).

    `wide` gives them 64-bit addresses, `maskable` a mask bit for each.
    """

    id = CAP_MSI

    def __init__(
        self, function: PciFunction, offset: int, vectors: int = 1, *, wide: bool = True, maskable: bool = True
    ) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI: {vectors} vectors; there can be 1, 2, 4, 8, 16 or 32")
        self._function, self._offset, self.vectors, self._wide = function, offset, vectors, wide
        self._maskable = maskable
        self._data = 12 if wide else 8
        self._mask, self._pending = self._data + 4, self._data + 8
        function.add_capability(offset, self._pending + 4 if maskable else self._data + 2, self)
        control = (MSI_MASKING if maskable else 0) | (MSI_64_BIT if wide else 0) | (vectors.bit_length() - 1) << 1
        function.put_template(offset + 2, 2, control, writable=MSI_GRANTED | MSI_ENABLE)
        function.put_template(offset + 4, 8 if wide else 4, 0, writable=0xFFFF_FFFF_FFFF_FFFC if wide else 0xFFFF_FFFC)
        function.put_template(offset + self._data, 2, 0, writable=0xFFFF)
        if maskable:
            function.put_template(offset + self._mask, 4, 0, writable=(1 << vectors) - 1)
            function.put_template(offset + self._pending, 4, 0, dynamic=(1 << vectors) - 1)

    def _field(self, offset: int, size: int) -> int:
        return self._function.config_read(self._offset + offset, size)

    @property
    def enabled(self) -> bool:
        """Whether the guest wants messages instead of the pin."""
        return bool(self._function.config[self._offset + 2] & MSI_ENABLE)

    def notify(self, vector: int) -> None:
        """The device raises `vector`: a message, or a pending bit while it is masked."""
        control = self._field(2, 2)
        if not control & MSI_ENABLE:
            return
        allowed = min(1 << (control >> 4 & 7), self.vectors)
        # With fewer messages granted than wanted, the high vectors share the granted ones.
        vector %= allowed
        if self._maskable and self._field(self._mask, 4) >> vector & 1:
            self._set_pending(self._field(self._pending, 4) | 1 << vector)
            return
        data = self._field(self._data, 2) & ~(allowed - 1) | vector
        self._function.signal_msi(self._field(4, 8 if self._wide else 4), data)

    def written(self) -> None:
        control, most = self._field(2, 2), self.vectors.bit_length() - 1
        if (control & MSI_GRANTED) >> 4 > most:
            # No more can be granted than are wanted.
            kept = control & ~MSI_GRANTED | most << 4
            self._function.config[self._offset + 2 : self._offset + 4] = kept.to_bytes(2, "little")
        if not self._maskable:
            return
        due = self._field(self._pending, 4) & ~self._field(self._mask, 4)
        if due and self.enabled:
            self._set_pending(self._field(self._pending, 4) & ~due)
            for vector in range(self.vectors):
                if due >> vector & 1:
                    self.notify(vector)

    def _set_pending(self, bits: int) -> None:
        at = self._offset + self._pending
        self._function.config[at : at + 4] = (bits & 0xFFFF_FFFF).to_bytes(4, "little")


class MsiX(Capability):
    """`vectors` messages in a table that lies in `bar` (a container region), with the pending bits behind it.

    Table and pending bits are not in configuration space: the function saves `table` and `pending` with its own state,
    declared as `Memory` and handed over by name (`save_as`).
    """

    id = CAP_MSIX

    def __init__(
        self,
        function: PciFunction,
        offset: int,
        vectors: int,
        bar: Bar,
        table_offset: int = 0,
        pending_offset: int | None = None,
    ) -> None:
        if not 1 <= vectors <= 2048:
            raise ValueError(f"MSI-X: {vectors} vectors; there can be 1 to 2048")
        self._function, self._offset, self.vectors = function, offset, vectors
        self._own = {"table": bytearray(vectors * MSIX_ENTRY), "pending": bytearray(-(-vectors // 64) * 8)}
        self._names: dict[str, str] = {}
        pending_offset = table_offset + len(self.table) if pending_offset is None else pending_offset
        if pending_offset + len(self.pending) > bar.region.size:
            raise ValueError(f"MSI-X: the tables of {vectors} vectors do not fit BAR {bar.index}")
        function.add_capability(offset, MSIX_SIZE, self)
        function.put_template(offset + 2, 2, vectors - 1, writable=MSIX_ENABLE | MSIX_FUNCTION_MASK)
        function.put_template(offset + 4, 4, table_offset | bar.index)
        function.put_template(offset + 8, 4, pending_offset | bar.index)
        sizes = AccessSizes(4, 8)
        place = bar.region.add_subregion
        place(table_offset, MemoryRegion.new_io("msix-table", len(self.table), _Table(self), valid=sizes, impl=sizes))
        place(pending_offset, MemoryRegion.new_io("msix-pba", len(self.pending), _Pba(self), valid=sizes, impl=sizes))
        self.reset()

    def save_as(self, table: str, pending: str) -> None:
        """Keep the bytes in states of the function (`Memory` of their sizes), so that they are saved with it."""
        self._names = {"table": table, "pending": pending}
        self.reset()

    def _bytes(self, which: str) -> bytearray:
        # By name each time: a load puts other bytes into the state.
        content: bytearray = getattr(self._function, self._names[which]) if self._names else self._own[which]
        return content

    @property
    def table(self) -> bytearray:
        """16 bytes for each vector."""
        return self._bytes("table")

    @property
    def pending(self) -> bytearray:
        """A bit for each vector."""
        return self._bytes("pending")

    def reset(self) -> None:
        self.table[:] = (bytes(12) + MSIX_MASKED.to_bytes(4, "little")) * self.vectors
        self.pending[:] = bytes(len(self.pending))

    def _control(self) -> int:
        return self._function.config_read(self._offset + 2, 2)

    @property
    def enabled(self) -> bool:
        """Whether the guest wants messages instead of the pin."""
        return bool(self._control() & MSIX_ENABLE)

    def masked(self, vector: int) -> bool:
        """Whether the vector waits, by its own mask bit or the function's."""
        return bool(self._control() & MSIX_FUNCTION_MASK or self.table[vector * MSIX_ENTRY + 12] & MSIX_MASKED)

    def notify(self, vector: int) -> None:
        """The device raises `vector`: a message, or a pending bit while it is masked."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return
        if self.masked(vector):
            self.pending[vector >> 3] |= 1 << (vector & 7)
            return
        entry = self.table[vector * MSIX_ENTRY : (vector + 1) * MSIX_ENTRY]
        address, data = int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little")
        self._function.signal_msi(address, data)

    def written(self) -> None:
        if self.enabled and any(self.pending):
            for vector in range(self.vectors):
                self.deliver_pending(vector)

    def deliver_pending(self, vector: int) -> None:
        """Send what waits for `vector`, if nothing masks it any more."""
        bit = 1 << (vector & 7)
        if self.pending[vector >> 3] & bit and self.enabled and not self.masked(vector):
            self.pending[vector >> 3] &= ~bit
            self.notify(vector)


class _Table:
    """The table as the guest sees it."""

    def __init__(self, msix: MsiX) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._msix.table[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self._msix.table[offset : offset + size] = value.to_bytes(size, "little")
        self._msix.deliver_pending(offset // MSIX_ENTRY)


class _Pba:
    """The pending bits, which the guest only reads."""

    def __init__(self, msix: MsiX) -> None:
        self._msix = msix

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._msix.pending[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Dropped."""
