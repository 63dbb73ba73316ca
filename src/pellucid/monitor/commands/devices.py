"""What is plugged in: the tree of devices, and the PCI functions."""

from pellucid.machine.pci.details import info_pci
from pellucid.machine.qdev import qtree_text
from pellucid.monitor.command import command
from pellucid.monitor.session import Session


@command(info="pci", help="show PCI info")
def pci(session: Session) -> str:
    """Every function, with what its registers say."""
    root = session.machine.pci
    return "PCI not available\n" if root is None else info_pci(root)


@command(info="qtree", help="show device tree")
def qtree(session: Session) -> str:
    """The buses and the devices on them."""
    return qtree_text(session.machine.qdev)
