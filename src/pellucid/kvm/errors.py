"""The exceptions of the kvm floor.

PellucidError
└── KvmError
    ├── MsrAccessError     a guest's RDMSR or WRMSR that the processor answers with #GP(0)
    ├── StateError         saved state that no chip can be in; nothing has been changed
    └── InvalidRequestError
                           a call on a VM that contradicts itself or what exists (KVM's EINVAL, EEXIST, ENOENT)
"""

from pellucid.errors import PellucidError


class KvmError(PellucidError):
    """Root of the errors that the kvm floor raises on purpose."""


class MsrAccessError(KvmError):
    """The access to `index` raises #GP(0) in the guest; the register is unchanged."""

    def __init__(self, index: int, value: int | None = None) -> None:
        self.index = index
        self.value = value
        access = f"RDMSR of {index:#x}" if value is None else f"WRMSR of {value:#x} to {index:#x}"
        super().__init__(f"{access} raises #GP(0)")


class StateError(KvmError):
    """Saved state was refused because the chip could not be in it. The text names the field and its value."""


class InvalidRequestError(KvmError):
    """The request cannot be carried out; the text says which part of it is wrong."""
