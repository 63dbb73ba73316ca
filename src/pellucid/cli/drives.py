"""-drive and its short forms, -boot: text to DriveOptions and BootConfig."""

import re
from collections.abc import Mapping

from pellucid.block import FORMATS, CacheMode, DriveOptions, ErrorAction, Policy
from pellucid.cli.draft import Draft
from pellucid.cli.keyval import parse_keyval, parse_switch, suggestion
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import BootConfig

BUILT = ("file if bus unit index media format snapshot readonly read-only cache aio discard werror rerror id"
         " detect-zeroes copy-on-read").split()  # fmt: skip
NOT_BUILT = """
addr auto-read-only backing cyls driver heads node-name secs trans
bps bps_rd bps_wr bps_max bps_rd_max bps_wr_max iops iops_rd iops_wr iops_max iops_rd_max iops_wr_max iops_size group
""".split()
INTERFACES = ("ide", "floppy", "none")
INTERFACES_NOT_BUILT = ("scsi", "sd", "mtd", "pflash", "virtio", "xen")
CACHE_NOT_BUILT = ("none", "off", "directsync")
READ_ACTIONS = ("report", "ignore", "stop")
FORMATS_OF_PROTOCOLS = ("file", "host_device")
BOOT_LETTERS, MOST_BOOT_DEVICES = "abcdn", 3
LONGEST_SPLASH, LONGEST_TIMEOUT = 0xFFFF, 0xFFFF


def drive(draft: Draft, text: str) -> None:
    """-drive file=...,if=...: one drive."""
    draft.drives.append(parse_drive(text))


class DriveShortcut:
    """An option that takes a file's name and says where the drive is; commas in the name are the name's own."""

    def __init__(self, option: str, index: int, media: str = "disk", interface: str = "ide") -> None:
        self._option, self._index, self._media, self._interface = option, index, media, interface

    def __call__(self, draft: Draft, text: str) -> None:
        where = f"-{self._option} {text}"
        draft.drives.append(
            DriveOptions(where, file=text, interface=self._interface, index=self._index, media=self._media)
        )


def parse_drive(text: str) -> DriveOptions:
    """What `-drive text` asks for. UserError when malformed, NotBuiltError for what QEMU has and we lack."""
    option = f"-drive {text}"
    values = parse_keyval("drive", text, (*BUILT, *NOT_BUILT, *_dotted(text)))
    for key in values:
        if key not in BUILT:
            raise NotBuiltError(f"{option}: {key}= is not built yet: leave it out")
    _check_fixed(option, values)
    if values.get("if") == "floppy":
        _check_floppy(option, values)
    return DriveOptions(
        option,
        file=values.get("file"),
        interface=_interface(option, values),
        bus=_number(option, values, "bus"),
        unit=_number(option, values, "unit"),
        index=_number(option, values, "index"),
        media=_chosen(option, values, "media", ("disk", "cdrom"), "invalid media") or "disk",
        format=_format(option, values),
        snapshot=_switch(values, "snapshot"),
        read_only=_switch(values, "readonly") or _switch(values, "read-only"),
        id=_id(option, values),
        policy=_policy(option, values),
    )


def _dotted(text: str) -> list[str]:
    """Keys such as file.locking or throttling.iops-total, which belong to a node below the drive."""
    return re.findall(r"(?:^|,)((?:no)?[\w-]+\.[\w.-]+)=", text)


def _check_fixed(option: str, values: Mapping[str, str]) -> None:
    if values.get("aio", "threads") != "threads":
        _chosen(option, values, "aio", ("threads", "native", "io_uring"), "invalid aio option")
        raise NotBuiltError(f"{option}: aio={values['aio']} is not built yet: use aio=threads")
    if values.get("detect-zeroes", "off") != "off":
        raise NotBuiltError(f"{option}: detect-zeroes={values['detect-zeroes']} is not built yet: leave it out")
    if _switch(values, "copy-on-read"):
        raise NotBuiltError(f"{option}: copy-on-read is not built yet: leave it out")


def _check_floppy(option: str, values: Mapping[str, str]) -> None:
    for key in ("werror", "rerror"):
        if key in values:
            raise UserError(f"{option}: {key} is not supported by this bus type: leave it out")


def _switch(values: Mapping[str, str], key: str) -> bool:
    return parse_switch("drive", key, values.get(key, "off"))


def _chosen(option: str, values: Mapping[str, str], key: str, words: tuple[str, ...], wrong: str) -> str | None:
    word = values.get(key)
    if word is not None and word not in words:
        raise UserError(f"{option}: '{word}' {wrong}: give {key}={' or '.join(words)}")
    return word


def _interface(option: str, values: Mapping[str, str]) -> str:
    name = values.get("if", "ide")
    if name in INTERFACES_NOT_BUILT:
        raise NotBuiltError(f"{option}: if={name} is not built yet: use if=ide")
    if name not in INTERFACES:
        raise UserError(f"{option}: unsupported bus type '{name}': give if=ide, if=floppy or if=none")
    return name


def _number(option: str, values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key)
    if text is None:
        return None
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII):
        raise UserError(f"{option}: Parameter '{key}' expects a number: write {key}=0")
    return int(text)


def _format(option: str, values: Mapping[str, str]) -> str | None:
    name = values.get("format")
    if name is None or name in FORMATS:
        return name
    if name in FORMATS_OF_PROTOCOLS:
        raise NotBuiltError(f"{option}: format={name} is not built yet: use format=raw")
    raise UserError(f"{option}: Unknown driver '{name}': {suggestion(name, FORMATS, 'give format=raw')}")


def _id(option: str, values: Mapping[str, str]) -> str:
    name = values.get("id", "")
    if "id" in values and not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise UserError(
            f"{option}: Parameter 'id' expects an identifier: letters, digits, '-', '.', '_', starting with a letter"
        )
    return name


def _policy(option: str, values: Mapping[str, str]) -> Policy:
    cache = values.get("cache", "writeback")
    if cache in CACHE_NOT_BUILT:
        raise NotBuiltError(f"{option}: cache={cache} (O_DIRECT) is not built yet: use cache=writeback")
    modes = tuple(mode.value for mode in CacheMode)
    if cache not in modes:
        raise UserError(f"{option}: invalid cache option: give cache={' or '.join(modes)}")
    read = _chosen(option, values, "rerror", READ_ACTIONS, "invalid read error action") or "report"
    write = _chosen(option, values, "werror", (*READ_ACTIONS, "enospc"), "invalid write error action") or "enospc"
    discard = _chosen(option, values, "discard", ("ignore", "off", "unmap", "on"), "invalid discard option")
    return Policy(CacheMode(cache), ErrorAction(read), ErrorAction(write), discard in ("unmap", "on"))


def boot(draft: Draft, text: str) -> None:
    """-boot [order=]LETTERS,once=LETTERS,menu=on,...; several add up."""
    known = ("order", "once", "menu", "splash", "splash-time", "reboot-timeout", "strict")
    values = parse_keyval("boot", text, known, "order")
    if "splash" in values:
        raise NotBuiltError(f"-boot {text}: splash= is not built yet (there is no display): leave it out")
    for key in ("order", "once"):
        _check_boot_order(text, values.get(key, ""))
    before = draft.boot
    draft.boot = BootConfig(
        order=values.get("order", before.order),
        once=values.get("once", before.once),
        menu=parse_switch("boot", "menu", values["menu"]) if "menu" in values else before.menu,
        splash_time=_milliseconds(values, "splash-time", LONGEST_SPLASH, before.splash_time),
        reboot_timeout=None
        if values.get("reboot-timeout") == "-1"  # never
        else _milliseconds(values, "reboot-timeout", LONGEST_TIMEOUT, before.reboot_timeout),
        strict=parse_switch("boot", "strict", values["strict"]) if "strict" in values else before.strict,
    )


def _check_boot_order(text: str, order: str) -> None:
    for letter in order:
        if not "a" <= letter <= "p":
            raise UserError(f"-boot {text}: Invalid boot device '{letter}': give letters of {BOOT_LETTERS}")
        if letter not in BOOT_LETTERS:
            raise UserError(f"-boot {text}: Invalid boot device for PC: give letters of {BOOT_LETTERS}")
        if order.count(letter) > 1:
            raise UserError(f"-boot {text}: Boot device '{letter}' was given twice")
    if len(order) > MOST_BOOT_DEVICES:
        raise UserError(f"-boot {text}: Too many boot devices for PC: give at most {MOST_BOOT_DEVICES}")


def _milliseconds(values: Mapping[str, str], key: str, most: int, otherwise: int | None) -> int | None:
    text = values.get(key)
    if text is None:
        return otherwise
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or int(text) > most:
        raise UserError(f"-boot: {key}={text}: give milliseconds from 0 to {most}")
    return int(text)
