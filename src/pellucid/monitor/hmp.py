"""HMP, the monitor for people: a line in, the text to show out.

The commands are those declared with an HMP name (`command.py`). Their arguments are read here, in QEMU's notation and
with its words for what is wrong.
"""

from collections.abc import Mapping
from typing import Any

from pellucid.errors import PellucidError
from pellucid.monitor.command import HMP_COMMANDS, INFO_COMMANDS, Command, Parameter, declare_commands, run_command
from pellucid.monitor.errors import SyntaxProblem
from pellucid.monitor.session import Session

NOT_BUILT = frozenset(
    """
    announce_self balloon block_job_cancel block_job_complete block_job_pause block_job_resume block_job_set_speed
    block_resize block_set_io_throttle block_stream boot_set calc_dirty_rate cancel_vcpu_dirty_limit chardev-add
    chardev-change chardev-remove client_migrate_info closefd commit delvm device_add device_del
    drive_add drive_backup drive_del drive_mirror dump-guest-memory dumpdtb exit_preconfig expire_password
    gdbserver getfd gpa2hpa hostfwd_add hostfwd_remove loadvm migrate migrate_cancel migrate_continue
    migrate_incoming migrate_pause migrate_recover migrate_set_capability migrate_set_parameter migrate_start_postcopy
    mouse_button mouse_move mouse_set nbd_server_add nbd_server_remove nbd_server_start nbd_server_stop netdev_add
    netdev_del object_add object_del pcie_aer_inject_error qemu-io qom-set replay_break replay_delete_break replay_seek
    savevm screendump set_link set_password set_vcpu_dirty_limit singlestep snapshot_blkdev snapshot_blkdev_internal
    snapshot_delete_blkdev_internal stopcapture sync-profile trace-event watchdog_action wavcapture
    x_colo_lost_heartbeat
    """.split()
)
INFO_NOT_BUILT = frozenset(
    """
    balloon block-jobs blockstats capture dirty_rate dump iothreads lapic memdev memory-devices mice migrate
    migrate_capabilities migrate_parameters network numa opcount profile qdm qom-tree rdma replay rocker
    rocker-of-dpa-flows rocker-of-dpa-groups rocker-ports sev sgx snapshots spice stats sync-profile tpm trace-events
    usb usbhost usernet vcpu_dirty_limit virtio virtio-queue-element virtio-queue-status virtio-status
    virtio-vhost-queue-status vm-generation-id vnc
    """.split()
)
"""What QEMU has and is not here yet: it is answered by its name, and leaves the list as it gets built."""


def execute(session: Session, line: str) -> str:
    """Carry out one line. The answer, to a bad command too, ends in a newline unless it is empty."""
    declare_commands()
    line = line.strip()
    if not line or line.startswith("#"):
        return ""
    name, rest = split_name(line)
    if name == "info" and rest:
        name, rest = split_name(rest)
        return _dispatch(session, INFO_COMMANDS, name, rest, "info ")
    return _dispatch(session, HMP_COMMANDS, name, rest, "")


def split_name(line: str) -> tuple[str, str]:
    """The command's name and what follows; a format's slash ends the name."""
    end = next((index for index, char in enumerate(line) if char.isspace() or char == "/"), len(line))
    return line[:end], line[end:].lstrip()


def _dispatch(session: Session, table: Mapping[str, Command], name: str, rest: str, prefix: str) -> str:
    found = table.get(name)
    if found is None or (found.qmp and not found.names and not found.info):
        if name in (INFO_NOT_BUILT if prefix else NOT_BUILT):
            return f"{prefix}{name}: not built yet\n"
        return f"unknown command: '{prefix}{name}'\n"
    try:
        return found.text(run_command(found, session, read_arguments(session, found, rest)))
    except SyntaxProblem as problem:
        return f'{problem}\nTry "help {prefix}{name}" for more information\n'
    except PellucidError as error:
        return f"Error: {error}\n"


def read_arguments(session: Session, found: Command, text: str) -> dict[str, Any]:
    """What `text` gives for the command's parameters. Raises SyntaxProblem."""
    given: dict[str, Any] = {}
    flags, text = _read_flags(found, text)
    for parameter in found.parameters:
        attribute = parameter.member.attribute
        if parameter.kind == "flag":
            given[attribute] = parameter.letter in flags
        elif parameter.kind == "format":
            given[attribute], text = _read_format(text)
        elif parameter.kind and (text or not parameter.member.optional):
            given[attribute], text = _read_value(session, found, parameter, text)
    if text:
        raise SyntaxProblem(f"{found.title}: extraneous characters at the end of line")
    return given


def _read_flags(found: Command, text: str) -> tuple[set[str], str]:
    """The single-letter options at the start (`-f -d`, or `-fd`), and what follows them."""
    known = {parameter.letter for parameter in found.parameters if parameter.kind == "flag"}
    flags: set[str] = set()
    while known and text.startswith("-"):
        word, _, text = text.partition(" ")
        text = text.lstrip()
        for letter in word[1:] or ("",):
            if letter not in known:
                raise SyntaxProblem(f"{found.title}: unsupported option -{letter}")
            flags.add(letter)
    return flags, text


def _read_format(text: str) -> tuple[str | None, str]:
    if not text.startswith("/"):
        return None, text
    form, _, rest = text[1:].partition(" ")
    return form, rest.lstrip()


def _read_value(session: Session, found: Command, parameter: Parameter, text: str) -> tuple[Any, str]:
    if parameter.kind in ("value", "int"):
        value, rest = session.value(text)
        return value if parameter.kind == "value" or value < 1 << 63 else value - (1 << 64), rest
    if parameter.kind == "line":
        return text, ""
    if not text:
        wanted = "filename" if parameter.kind == "filename" else "string"
        raise SyntaxProblem(f"{found.title}: {wanted} expected")
    if text.startswith('"'):
        return _read_quoted(found, text)
    word, *rest_words = text.split(None, 1)
    return word, rest_words[0] if rest_words else ""


def _read_quoted(found: Command, text: str) -> tuple[str, str]:
    pieces: list[str] = []
    position = 1
    while position < len(text) and text[position] != '"':
        character = text[position]
        if character == "\\":
            position += 1
            escape = text[position : position + 1]
            character = {"n": "\n", "r": "\r", "\\": "\\", "'": "'", '"': '"'}.get(escape, "")
            if not character:
                raise SyntaxProblem(f"unsupported escape code: '\\{escape}'\n{found.title}: string expected")
        pieces.append(character)
        position += 1
    if position >= len(text):
        raise SyntaxProblem(f"unterminated string\n{found.title}: string expected")
    return "".join(pieces), text[position + 1 :].lstrip()


def completions(line: str) -> list[str]:
    """The words that could stand where the last word of `line` stands."""
    declare_commands()
    words = line.split(" ")
    if len(words) == 1:
        return [name for name in HMP_COMMANDS if name != "?"]
    if words[0] in ("info", "help", "?") and len(words) == 2:
        return list(INFO_COMMANDS if words[0] == "info" else HMP_COMMANDS)
    return list(INFO_COMMANDS) if words[:2] == ["help", "info"] and len(words) == 3 else []

