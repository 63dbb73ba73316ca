"""Kernel modules of the default guest's kernel: taken from the same Debian package, in the order in which they load."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pellucid.cli.guest.apt import Apt, with_fresh_lists_if_needed
from pellucid.cli.guest.archive import package_files
from pellucid.cli.guest.cache import guest_cache, publish_folder
from pellucid.cli.progress import ProgressBar
from pellucid.errors import UserError

FOLDERS = r"lib/modules/[^/]+/kernel/(drivers/(ata|scsi|cdrom)|fs/isofs|lib|crypto|block)/.*\.ko"
"""What storage needs; the whole package would be ten times that."""
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def module_folder(kernel: Path) -> Path:
    """The cached folder of the modules of the default kernel, `kernel`; fetched the first time. Raises UserError."""
    package = json.loads((kernel.parent / "package.json").read_text())["package"]

    def fetch(apt: Apt, folder: Path, bar: ProgressBar) -> None:
        archive = apt.download(package.partition("_")[0], folder, bar.percent)
        if archive.name != package:
            raise UserError(f"the kernel is of {package} and apt has {archive.name}: remove {kernel.parent}")
        for path, content in package_files(archive, FOLDERS):
            (folder / _plain(Path(path).name)).write_bytes(content)
        archive.unlink()

    def fill(folder: Path) -> None:
        with ProgressBar() as bar:
            with_fresh_lists_if_needed(lambda apt: fetch(apt, folder, bar), bar.percent)

    return publish_folder(guest_cache() / "modules" / package, fill)


def in_load_order(folder: Path, names: Iterable[str]) -> list[Path]:
    """The files of the modules `names` and of all that they depend on, dependencies first. Raises UserError."""
    found: list[Path] = []
    for name in names:
        _add(folder, _plain(f"{name}.ko"), found)
    return found


def _add(folder: Path, file: str, found: list[Path]) -> None:
    path = folder / file
    if path in found:
        return
    if not path.is_file():
        raise UserError(f"the default guest's kernel has no module {file}")
    depends = _DEPENDS.search(path.read_bytes())
    needed: Sequence[str] = depends[1].decode("ascii", "replace").split(",") if depends else ()
    for name in filter(None, needed):
        _add(folder, _plain(f"{name}.ko"), found)
    found.append(path)


def _plain(name: str) -> str:
    """Modules are named with either dash or underline; we keep the latter."""
    return name.replace("-", "_")
