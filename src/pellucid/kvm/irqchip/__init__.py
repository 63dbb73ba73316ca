"""The interrupt chips that KVM keeps in the kernel: local APICs, IOAPIC, the 8259 pair, the 8254 timer.

Every chip is plain Python, knows nothing of the backend, gets its clock, its lock and its neighbours through the
constructor, and saves its state in KVM's structures (`state.py`). One lock, the VM's irqchip lock (a recursive one),
protects them all, because interrupts go from chip to chip in both directions: pin to IOAPIC to LAPIC, and an EOI back.
"""
