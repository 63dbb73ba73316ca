"""The block layer: a graph of nodes for each drive, and the drive's own end of it.

    node.py      what a node is; file.py, raw.py, overlay.py: the drivers
    locks.py     keeping two writers off one image; probe.py: which format it is in
    pool.py      the threads that requests run on
    backend.py   what a guest's device talks to; drive.py: a drive as asked for, and how its image is opened
"""

from pellucid.block.backend import BlockBackend, CacheMode, Completion, ErrorAction, Policy
from pellucid.block.drive import DriveOptions, attach, medium, open_image
from pellucid.block.file import FileNode
from pellucid.block.locks import FOR_READING, FOR_WRITING, UNATTACHED, ImageLocked, Permissions, lock_image
from pellucid.block.node import SECTOR_SIZE, BlockNode
from pellucid.block.overlay import TemporaryOverlay
from pellucid.block.pool import WorkerPool
from pellucid.block.probe import FORMATS, probe
from pellucid.block.raw import RawNode
from pellucid.block.vectors import Buffers

__all__ = [
    "FORMATS",
    "FOR_READING",
    "FOR_WRITING",
    "SECTOR_SIZE",
    "UNATTACHED",
    "BlockBackend",
    "BlockNode",
    "Buffers",
    "CacheMode",
    "Completion",
    "DriveOptions",
    "ErrorAction",
    "FileNode",
    "ImageLocked",
    "Permissions",
    "Policy",
    "RawNode",
    "TemporaryOverlay",
    "WorkerPool",
    "attach",
    "lock_image",
    "medium",
    "open_image",
    "probe",
]
