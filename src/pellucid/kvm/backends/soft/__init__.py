"""The backend on Pellucid's own processor."""

from pellucid.kvm.backends.soft.system import SoftHypervisor

__all__ = ["SoftHypervisor"]
