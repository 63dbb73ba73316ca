"""-fw_cfg: files of the user's own, which a guest finds in /sys/firmware/qemu_fw_cfg/by_name."""

from collections.abc import Sequence

from pellucid.errors import UserError
from pellucid.machine.boot.image import read_file
from pellucid.machine.config import FwCfgFile
from pellucid.machine.devices.fw_cfg import FwCfg


def offer_user_files(fw_cfg: FwCfg, files: Sequence[FwCfgFile]) -> None:
    """-fw_cfg. Raises UserError for a name that is taken or a file that cannot be read."""
    for given in files:
        if given.name in fw_cfg.files:
            raise UserError(f"-fw_cfg name={given.name}: there is a file of that name already: choose another")
        content = given.text.encode() if given.path is None else read_file(given.path, "-fw_cfg file")
        fw_cfg.add_file(given.name, content)
