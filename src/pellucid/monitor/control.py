"""What all monitors of a machine share."""

from pellucid.machine.machine import Machine
from pellucid.machine.streams import Streams
from pellucid.monitor.events import EventBroker
from pellucid.records import dataclass


@dataclass(frozen=True)
class Control:
    """A machine under control: the machine, its character devices, and where its events go."""

    machine: Machine
    streams: Streams
    events: EventBroker
