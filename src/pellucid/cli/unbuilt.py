"""QEMU's options that Pellucid does not have yet, and whether each takes a value.

They are listed so that a script's option gets "not built yet" with its own name, and so that an option's value is
never mistaken for the next option.
"""

WITH_VALUE = """
add-fd blockdev chroot compat dtb
dump-vmstate fsdev gdb incoming iscsi k loadvm
msg mtdblock netdev numa object option-rom pflash plugin readconfig
rotate runas sandbox sd seed set spice tb-size tpmdev trace usbdevice virtfs watchdog watchdog-action
xen-domid
""".split()

SWITCHES = """
async-teardown audio-help enable-sync-profile full-screen mem-prealloc
portrait preconfig s singlestep usb win2k-hack xen-attach xen-domid-restrict
""".split()

HINTS = {
    "gdb": "use the monitor (Ctrl-A c) to look at the guest",
    "s": "use the monitor (Ctrl-A c) to look at the guest",
}
"""What to do instead, where there is something; otherwise: leave it out."""
