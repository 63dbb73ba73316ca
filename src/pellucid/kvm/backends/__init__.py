"""The backends of the Hypervisor interface, by accelerator name."""

from collections.abc import Callable

from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import Hypervisor
from pellucid.kvm.clock import Clock

Progress = Callable[[str, int, int], None]

SOFT_NAMES = ("pellucid", "soft", "tcg")


def create_hypervisor(name: str, clock: Clock, progress: Progress | None = None) -> Hypervisor:
    """The backend called `name`; `progress(what, done, total)` hears of a first compile.

    Raises NotBuiltError for KVM, UserError for a name that nobody has.
    """
    if name in SOFT_NAMES:
        from pellucid.kvm.backends.soft import SoftHypervisor

        return SoftHypervisor(clock, progress)
    if name == "qtest":
        from pellucid.kvm.backends.qtest import QtestHypervisor

        return QtestHypervisor(clock)
    if name == "kvm":
        raise NotBuiltError("-accel kvm: the /dev/kvm backend is not built yet; use -accel tcg, Pellucid's own engine")
    raise UserError(f"-accel {name}: no such accelerator; known are {', '.join((*SOFT_NAMES, 'qtest'))}")
