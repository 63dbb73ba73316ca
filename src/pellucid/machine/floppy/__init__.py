"""Floppy disks: the formats that media have, and the drives. The controller is `devices/fdc.py`."""
