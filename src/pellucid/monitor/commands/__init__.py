"""The commands, a file for each subject. Importing this package declares them all."""

from pellucid.monitor.commands import (
    block,
    chardevs,
    chips,
    cpus,
    devices,
    keys,
    logs,
    machine,
    machine_check,
    memory,
    memtype,
    meta,
    paging,
    ports,
    qom,
    run,
)

__all__ = [
    "block",
    "chardevs",
    "chips",
    "cpus",
    "devices",
    "keys",
    "logs",
    "machine",
    "machine_check",
    "memory",
    "memtype",
    "meta",
    "paging",
    "ports",
    "qom",
    "run",
]
