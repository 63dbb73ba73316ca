"""Message-signalled interrupts: the address and data a device writes, read as an APIC message.

Intel SDM vol. 3, 11.11. The address is 0xfee00000 with the destination in bits 19:12, the redirection hint in bit 3 and
the destination mode in bit 2; the data holds vector, delivery mode and trigger. Ids above 255 come in KVM's x2APIC
format: address bits 63:40 are destination bits 31:8 (KVM_X2APIC_API_USE_32BIT_IDS).
"""

from pellucid.kvm.irqchip.apicdef import ApicMessage

MSI_ADDRESS_BASE = 0xFEE0_0000
MSI_ADDRESS_SIZE = 0x10_0000

_REDIRECTION_HINT = 1 << 3
_LOGICAL = 1 << 2
_DATA_ASSERT = 1 << 14
_DATA_LEVEL = 1 << 15


def is_msi_address(address: int) -> bool:
    """Whether a device's write to this bus address is an interrupt message rather than a memory write."""
    return MSI_ADDRESS_BASE <= address < MSI_ADDRESS_BASE + MSI_ADDRESS_SIZE


def msi_message(address: int, data: int) -> ApicMessage:
    """The APIC message that a write of the 32-bit `data` to the 64-bit `address` means."""
    return ApicMessage(
        vector=data & 0xFF,
        delivery_mode=data >> 8 & 7,
        dest_id=address >> 12 & 0xFF | address >> 32 & 0xFFFF_FF00,
        logical=bool(address & _LOGICAL),
        level=bool(data & _DATA_LEVEL),
        asserted=bool(data & _DATA_ASSERT),
        redirection_hint=bool(address & _REDIRECTION_HINT),
    )
