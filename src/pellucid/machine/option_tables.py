"""The parameters of QEMU's options that have some, with their types: the command line reads them, QMP lists them."""

from typing import Literal

ParameterType = Literal["string", "boolean", "number", "size"]

OPTION_TABLES: dict[str, dict[str, ParameterType]] = {
    "chardev": {
        "id": "string",
        "backend": "string",
        "path": "string",
        "host": "string",
        "port": "string",
        "server": "boolean",
        "wait": "boolean",
        "nodelay": "boolean",
        "delay": "boolean",
        "telnet": "boolean",
        "ipv4": "boolean",
        "ipv6": "boolean",
        "mux": "boolean",
        "signal": "boolean",
        "append": "boolean",
        "size": "size",
    },
    "mon": {"mode": "string", "chardev": "string", "pretty": "boolean"},
    "name": {"guest": "string", "process": "string", "debug-threads": "boolean"},
    "rtc": {"base": "string", "clock": "string", "driftfix": "string"},
    "memory": {"size": "size", "slots": "number", "maxmem": "size"},
    "action": {"reboot": "string", "shutdown": "string", "panic": "string", "watchdog": "string"},
    "smp-opts": {
        "cpus": "number",
        "sockets": "number",
        "dies": "number",
        "clusters": "number",
        "cores": "number",
        "threads": "number",
        "maxcpus": "number",
    },
}
"""Under the names that `query-command-line-options` gives the options."""

CHARDEV_NOT_BUILT = (
    "reconnect", "to", "websocket", "tls-creds", "tls-authz", "tn3270", "fd", "abstract", "tight", "logfile",
    "logappend", "input-path", "localaddr", "localport", "rows", "cols", "width", "height", "chardev", "name", "debug",
    "clipboard", "mouse",
)  # fmt: skip
"""Parameters of -chardev that QEMU has and that are not here yet."""
