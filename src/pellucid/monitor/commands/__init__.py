"""The commands, a file for each subject. Importing this package declares them all."""

from pellucid.monitor.commands import (
    chardevs,
    chips,
    cpus,
    devices,
    keys,
    logs,
    machine,
    memory,
    meta,
    paging,
    ports,
    qom,
    run,
)

__all__ = [
    "chardevs",
    "chips",
    "cpus",
    "devices",
    "keys",
    "logs",
    "machine",
    "memory",
    "meta",
    "paging",
    "ports",
    "qom",
    "run",
]
