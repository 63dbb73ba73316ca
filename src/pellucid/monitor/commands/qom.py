"""Objects and types: what the machine is made of, and what it could be made of."""

import json

from pellucid.monitor.command import command
from pellucid.monitor.errors import CommandError, DeviceNotFound
from pellucid.monitor.objects import all_types, device_classes, find, is_a, property_type
from pellucid.monitor.session import Session
from pellucid.records import dataclass


@dataclass(frozen=True)
class ObjectPropertyInfo:
    """A property or a child of an object, or a property of a type."""

    name: str
    type: str
    description: str | None = None
    default_value: object = None


@dataclass(frozen=True)
class ObjectTypeInfo:
    """A type; `abstract` when no object is of it alone."""

    name: str
    abstract: bool | None = None
    parent: str | None = None


def _list_text(found: list[ObjectPropertyInfo]) -> str:
    return "".join(f"{entry.name} ({entry.type})\n" for entry in found)


@command("qom-list", hmp="qom-list", help="list QOM properties", text=_list_text)
def qom_list(session: Session, path: str) -> list[ObjectPropertyInfo]:
    """The properties and children of the object at `path`."""
    found = find(session.machine, session.control.streams, path)
    listed = [ObjectPropertyInfo("type", "string")]
    listed += [ObjectPropertyInfo(entry.name, entry.type) for entry in found.properties]
    return listed + [ObjectPropertyInfo(name, f"child<{child.type}>") for name, child in found.children.items()]


@command("qom-get", hmp="qom-get", help="print QOM property", text=lambda value: _value_text(value) + "\n")
def qom_get(session: Session, path: str, property: str) -> object:
    """The value of a property; of a child, its path."""
    found = find(session.machine, session.control.streams, path)
    if property == "type":
        return found.type
    if property in found.children:
        return found.children[property].path
    for entry in found.properties:
        if entry.name == property:
            return entry.value
    raise CommandError(f"Property '{found.type}.{property}' not found")


def _value_text(value: object) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)


@command("qom-list-types")
def qom_list_types(
    session: Session, implements: str | None = None, abstract: bool | None = None
) -> list[ObjectTypeInfo]:
    """Types, with abstract ones only when asked for."""
    types = all_types()
    return [
        ObjectTypeInfo(kind.name, True if kind.abstract else None, kind.parent or None)
        for kind in types
        if (abstract or not kind.abstract) and (implements is None or is_a(types, kind.name, implements))
    ]


@command("device-list-properties")
def device_list_properties(session: Session, typename: str) -> list[ObjectPropertyInfo]:
    """What a device of that type can be given."""
    kind = device_classes().get(typename)
    if kind is None:
        raise DeviceNotFound(f"Device '{typename}' not found")
    return [
        ObjectPropertyInfo(
            entry.name.replace("_", "-"), property_type(entry), entry.doc or None, entry.kind.save(entry.default)
        )
        for entry in kind.properties
    ]
