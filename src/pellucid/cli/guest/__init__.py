"""The default guest: Debian's cloud kernel and an initrd with busybox, fetched and built on first use.

    default_kernel() -> Path     the bzImage, from the package that linux-image-cloud-amd64 depends on
    default_initrd() -> Path     an initrd that ends in an interactive shell (or runs another /init script)
    busybox() -> Path            the static busybox of Debian
    build_initrd(init) -> bytes  an initrd with another /init script and more files
    module_files(names) -> dict  modules of the kernel for it, in the order in which insmod takes them
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pellucid.cli.guest import initrd
from pellucid.cli.guest.apt import Apt, with_fresh_lists_if_needed
from pellucid.cli.guest.archive import package_file
from pellucid.cli.guest.cache import guest_cache, publish_file, publish_folder
from pellucid.cli.guest.initrd import InitrdFile
from pellucid.cli.guest.modules import in_load_order, module_folder
from pellucid.cli.guest.scripts import INTERACTIVE
from pellucid.cli.progress import ProgressBar

KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
KERNEL_PACKAGE = r"linux-image-\d.*-cloud-amd64"
GENERIC_META_PACKAGE = "linux-image-amd64"
GENERIC_PACKAGE = r"linux-image-\d.*-amd64"
BUSYBOX_PACKAGE = "busybox-static"
APPEND = "console=ttyS0"
"""The kernel command line that suits the default guest on a serial console."""

__all__ = ["APPEND", "InitrdFile", "build_initrd", "busybox", "default_initrd", "default_kernel", "generic_kernel",
           "module_files"]  # fmt: skip


def default_kernel() -> Path:
    """The cached bzImage of Debian's cloud kernel; fetched through apt the first time. Raises UserError."""

    def package(apt: Apt) -> str:
        return apt.dependency(KERNEL_META_PACKAGE, KERNEL_PACKAGE)

    return _fetched_file("kernel", "vmlinuz", package, r"boot/vmlinuz-.*")


def generic_kernel() -> Path:
    """The cached bzImage of Debian's kernel for all machines, with every driver as a module. Raises UserError."""

    def package(apt: Apt) -> str:
        return apt.dependency(GENERIC_META_PACKAGE, GENERIC_PACKAGE)

    return _fetched_file("generic-kernel", "vmlinuz", package, r"boot/vmlinuz-.*")


def busybox() -> Path:
    """The cached static busybox; fetched through apt the first time. Raises UserError."""
    return _fetched_file("busybox", "busybox", lambda _: BUSYBOX_PACKAGE, r"(usr/)?bin/busybox")


def build_initrd(init: str = INTERACTIVE, files: Mapping[str, InitrdFile] | None = None) -> bytes:
    """A gzip-compressed cpio archive with busybox, `init` as its /init script and `files` by their guest path."""
    return initrd.build_initrd(init, busybox().read_bytes(), files)


def module_files(names: Sequence[str], kernel: Path | None = None) -> dict[str, InitrdFile]:
    """Modules of one of our kernels, the default one, and those they need, by guest path, in load order.

    Raises UserError.
    """
    paths = in_load_order(module_folder(kernel or default_kernel()), names)
    return {f"modules/{path.name}": InitrdFile(path.read_bytes()) for path in paths}


def default_initrd(init: str = INTERACTIVE, files: Mapping[str, InitrdFile] | None = None) -> Path:
    """build_initrd()'s archive as a cached file, named by its content."""
    content = build_initrd(init, files)
    path = guest_cache() / f"initrd-{hashlib.sha256(content).hexdigest()[:16]}.cpio.gz"
    return path if path.is_file() else publish_file(path, content)


def _fetched_file(part: str, name: str, package_of: Callable[[Apt], str], pattern: str) -> Path:
    """guest_cache()/part/name, taken from a Debian package, with a package.json beside it that says which."""

    def fetch(apt: Apt, folder: Path, bar: ProgressBar) -> None:
        package = apt.download(package_of(apt), folder, bar.percent)
        bar.percent(f"unpacking {package.name}", 0)
        path, content = package_file(package, pattern)
        package.unlink()
        (folder / name).write_bytes(content)
        (folder / "package.json").write_text(json.dumps({"package": package.name, "path": path}) + "\n")

    def fill(folder: Path) -> None:
        with ProgressBar() as bar:
            with_fresh_lists_if_needed(lambda apt: fetch(apt, folder, bar), bar.percent)

    return publish_folder(guest_cache() / part, fill) / name
