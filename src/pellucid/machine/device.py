"""How a device is declared.

A device is one class in one file. It states, as class attributes, what the guest and the user can see of it:

    class Port92(Device):
        kind = "port92"
        regions = (Region("port92", 1),)
        control = Register(0, writable=0x03, doc="bit 0 fast reset, bit 1 A20 gate")

        def __init__(self, reset_line: Callable[[], None]) -> None:
            super().__init__()
            self._reset_line = reset_line

        @control.after_write
        def _control_written(self) -> None:
            if self.control & 0x01:
                self._reset_line()

A `Register` is read and set like an int attribute and holds its value between accesses; `on_read` and `on_write`
replace that by behaviour, `after_write` adds to it. A `State` is a value that the guest cannot address (a FIFO, a
latch); a `Property` is what the user or the board chooses. Registers and states together are the device's saved state:
save() and load() come from the declaration, with every value checked before the first is set, so a bad stream leaves
the device as it was. What can be recomputed is not declared but rebuilt in after_load().

A device sees offsets into its own regions, never addresses; its clock, interrupt lines and backends come through its
constructor. All of it runs under the machine's lock.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Literal, TypeVar, overload

from pellucid.errors import UserError
from pellucid.machine.firmware.aml import Resources
from pellucid.machine.properties import PropertyType
from pellucid.machine.qdev import Gpios, QdevNode
from pellucid.machine.state import Integer, Kind, Plain, StateError
from pellucid.memory.access import AccessSizes, Endianness, IoOps
from pellucid.memory.region import MemoryRegion
from pellucid.records import dataclass, field

T = TypeVar("T")
Behaviour = TypeVar("Behaviour", bound=Callable[..., Any])
Access = Literal["rw", "ro", "wo"]


@dataclass(frozen=True)
class Region:
    """One window of a device: `size` bytes at whatever address the board gives it.

    `valid` are the access sizes that a guest may use, `impl` those that reach the device: the memory floor splits and
    widens between the two. `one_port`: the chip does not look at the low address lines, so that a wide access is
    several of its only register.
    """

    name: str
    size: int
    valid: AccessSizes = AccessSizes(1, 4)
    impl: AccessSizes = AccessSizes(1, 1)
    endianness: Endianness = Endianness.LITTLE
    one_port: bool = False

    def memory_region(self, ops: IoOps) -> MemoryRegion:
        """The node of the memory tree, with `ops` behind it."""
        return MemoryRegion.new_io(
            self.name, self.size, ops, valid=self.valid, impl=self.impl, endianness=self.endianness
        )


class Register:
    """A declared register: `size` bytes at `offset` of a region, `reset` after a reset.

    `writable` masks the bits that a plain write changes. `access` says which direction it answers: a read-only and a
    write-only register may share an offset. `bank` selects among registers at one offset by the device's state (the
    divisor latch of a 16550A). `stored=False` declares a register that has behaviour only and no value of its own;
    `exact` one that answers only accesses of its own width.
    """

    def __init__(
        self,
        offset: int,
        *,
        size: int = 1,
        reset: int = 0,
        writable: int | None = None,
        access: Access = "rw",
        bank: Callable[[Any], bool] | None = None,
        region: int = 0,
        stored: bool = True,
        exact: bool = False,
        doc: str = "",
    ) -> None:
        self.offset, self.size, self.reset, self.access, self.region = offset, size, reset, access, region
        self.bank, self.stored, self.exact, self.doc = bank, stored, exact, doc
        self.mask = (1 << 8 * size) - 1
        self.writable = self.mask if writable is None else writable
        self.name = ""
        self.read_behaviour: Callable[[Any], int] | None = None
        self.write_behaviour: Callable[[Any, int], None] | None = None
        self.written_behaviour: Callable[[Any], None] | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> "Register": ...
    @overload
    def __get__(self, device: "Device", owner: type) -> int: ...
    def __get__(self, device: "Device | None", owner: type) -> "Register | int":
        if device is None:
            return self
        value: int = device.__dict__[self.name]
        return value

    def __set__(self, device: "Device", value: int) -> None:
        device.__dict__[self.name] = value & self.mask

    def on_read(self, behaviour: Behaviour) -> Behaviour:
        """Decorator: `behaviour(self) -> int` is what a guest's read returns instead of the stored value."""
        self.read_behaviour = behaviour
        return behaviour

    def on_write(self, behaviour: Behaviour) -> Behaviour:
        """Decorator: `behaviour(self, value)` is what a guest's write does instead of storing the writable bits."""
        self.write_behaviour = behaviour
        return behaviour

    def after_write(self, behaviour: Behaviour) -> Behaviour:
        """Decorator: `behaviour(self)` runs after a guest's write has stored the writable bits."""
        self.written_behaviour = behaviour
        return behaviour

    def answers(self, device: "Device", size: int) -> bool:
        """Whether an access of `size` bytes at the register's place is for it, in the device's present state."""
        return (self.bank is None or self.bank(device)) and (not self.exact or size == self.size)

    def guest_read(self, device: "Device") -> int:
        """What the guest gets, cut to the register's width."""
        if self.read_behaviour is not None:
            return self.read_behaviour(device) & self.mask
        value: int = device.__dict__[self.name]
        return value

    def guest_write(self, device: "Device", value: int) -> None:
        """What a guest's write of `value`, cut to the register's width, does."""
        value &= self.mask
        if self.write_behaviour is not None:
            self.write_behaviour(device, value)
            return
        old = device.__dict__[self.name]
        device.__dict__[self.name] = (old & ~self.writable) | (value & self.writable)
        if self.written_behaviour is not None:
            self.written_behaviour(device)


class State(Generic[T]):
    """A declared value of a device that the guest cannot address; `reset` is plain data, as save() gives it."""

    def __init__(self, kind: Kind[T], reset: Plain, *, survives_reset: bool = False, doc: str = "") -> None:
        self.kind, self.reset, self.survives_reset, self.doc = kind, reset, survives_reset, doc
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, device: None, owner: type) -> "State[T]": ...
    @overload
    def __get__(self, device: "Device", owner: type) -> T: ...
    def __get__(self, device: "Device | None", owner: type) -> "State[T] | T":
        if device is None:
            return self
        value: T = device.__dict__[self.name]
        return value

    def __set__(self, device: "Device", value: T) -> None:
        device.__dict__[self.name] = value


class Property(Generic[T]):
    """What the user or the board chooses for a device, checked where it is set. Raises UserError for a bad value.

    `name` is the user's word for it where that is no Python name (`x-speed`).
    """

    def __init__(self, kind: PropertyType[T], default: T, *, name: str = "", doc: str = "") -> None:
        self.kind, self.default, self.doc, self.name = kind, default, doc, name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    @overload
    def __get__(self, device: None, owner: type) -> "Property[T]": ...
    @overload
    def __get__(self, device: "Device", owner: type) -> T: ...
    def __get__(self, device: "Device | None", owner: type) -> "Property[T] | T":
        if device is None:
            return self
        value: T = device.__dict__.get(self.name, self.default)
        return value

    def __set__(self, device: "Device", value: T) -> None:
        try:
            device.__dict__[self.name] = self.kind.load(value)
        except StateError as error:
            raise UserError(f"{device.kind}: property {self.name}: {error}") from None


RegisterTrace = Callable[["Device", str, bool, int], None]
"""Called with (device, register name or offset in words, is_write, value) at each access of the guest."""


class Device:
    """The base of every device: dispatch, reset, save and load, all from the declaration."""

    kind: ClassVar[str] = ""
    """QEMU's type name of the device (`isa-serial`), as users know it."""
    version: ClassVar[int] = 1
    """Of the saved state; raised with every change of the declared names or their meaning."""
    regions: ClassVar[tuple[Region, ...]] = ()
    registers: ClassVar[tuple[Register, ...]] = ()
    states: ClassVar[tuple[State[Any], ...]] = ()
    properties: ClassVar[tuple[Property[Any], ...]] = ()
    """A class's own before those of its bases, as listings have them."""
    gpios: ClassVar[Gpios] = ()
    """Wires that `info qtree` shows."""
    fixed_properties: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(name, value as shown) of what QEMU lets a user choose and this device does not: listed before the others."""
    _readers: ClassVar[dict[tuple[int, int], tuple[Register, ...]]] = {}
    _writers: ClassVar[dict[tuple[int, int], tuple[Register, ...]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared = {name: value for base in reversed(cls.__mro__) for name, value in vars(base).items()}
        cls.registers = tuple(value for value in declared.values() if isinstance(value, Register))
        cls.states = tuple(value for value in declared.values() if isinstance(value, State))
        own_first = {name: value for base in cls.__mro__ for name, value in vars(base).items() if name in declared}
        cls.properties = tuple(value for value in own_first.values() if isinstance(value, Property))
        cls._readers = _by_place(register for register in cls.registers if register.access != "wo")
        cls._writers = _by_place(register for register in cls.registers if register.access != "ro")

    def __init__(self) -> None:
        self.trace: RegisterTrace | None = None
        for state in self.states:
            state.__set__(self, state.kind.load(state.reset))
        Device.reset(self)

    def reset(self) -> None:
        """Back to the reset values. A device that also drives lines or timers extends this."""
        for register in self.registers:
            register.__set__(self, register.reset)
        for state in self.states:
            if not state.survives_reset:
                state.__set__(self, state.kind.load(state.reset))

    def read(self, offset: int, size: int) -> int:
        """A guest's read of `size` bytes at `offset` of the first region; what nothing answers reads as all ones."""
        return self.region_read(0, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of `size` bytes at `offset` of the first region; what nothing answers is dropped."""
        self.region_write(0, offset, size, value)

    def region_read(self, region: int, offset: int, size: int) -> int:
        """read() of the region with that index in `regions`."""
        for register in self._readers.get((region, offset), ()):
            if register.answers(self, size):
                value = register.guest_read(self) & ((1 << 8 * size) - 1)
                if self.trace is not None:
                    self.trace(self, register.name, False, value)
                return value
        ones = (1 << 8 * size) - 1
        if self.trace is not None:
            self.trace(self, f"nothing at {offset:#x}", False, ones)
        return ones

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        """write() of the region with that index in `regions`."""
        value &= (1 << 8 * size) - 1
        for register in self._writers.get((region, offset), ()):
            if register.answers(self, size):
                if self.trace is not None:
                    self.trace(self, register.name, True, value)
                register.guest_write(self, value)
                return
        if self.trace is not None:
            self.trace(self, f"nothing at {offset:#x}", True, value)

    def region_read_string(self, region: int, offset: int, size: int, count: int) -> bytes:
        """Up to `count` reads of `size` bytes at one place, as INS makes them; empty: they are to be made one by one.

        For data ports that hold a block.
        """
        return b""

    def acpi(self, where: Resources) -> bytes:
        """AML of the device for the DSDT, given where the board put it; nothing for what firmware does not announce."""
        return b""

    def region_made(self, index: int, region: MemoryRegion) -> None:
        """`region` is the node of the memory tree that a board has made for the region with that index."""

    def ops(self, region: int = 0) -> "RegionOps":
        """The object that the memory floor calls for the region with that index."""
        return RegionOps(self, region)

    def save(self) -> dict[str, Plain]:
        """The declared state as plain data, with the device's kind and version."""
        saved: dict[str, Plain] = {"device": self.kind, "version": self.version}
        for register in self.registers:
            if register.stored:
                saved[register.name] = register.__get__(self, type(self))
        for state in self.states:
            saved[state.name] = state.kind.save(state.__get__(self, type(self)))
        return saved

    def load(self, saved: Mapping[str, object]) -> None:
        """Take over what save() gave. Raises StateError, with the device untouched, for anything save() cannot give."""
        if saved.get("device") != self.kind or saved.get("version") != self.version:
            got = f"{saved.get('device')!r:.40} version {saved.get('version')!r:.20}"
            raise StateError(f"{self.kind} version {self.version}: the saved state is of {got}")
        kinds: dict[str, Kind[Any]] = {r.name: Integer(0, r.mask) for r in self.registers if r.stored}
        kinds.update((state.name, state.kind) for state in self.states)
        wrong = (set(saved) - {"device", "version"}) ^ set(kinds)
        if wrong:
            raise StateError(f"{self.kind}: the saved state lacks or does not know {sorted(wrong)!r:.80}")
        values = {}
        for name, kind in kinds.items():
            try:
                values[name] = kind.load(saved[name])
            except StateError as error:
                raise StateError(f"{self.kind}: {name}: {error}") from None
        self.__dict__.update(values)
        self.after_load()

    def after_load(self) -> None:
        """Recompute what is not declared (timers, line levels) from the state just loaded."""

    def set_properties(self, values: Mapping[str, object]) -> None:
        """Take over values of declared properties by the user's names, before the device is on its bus."""
        by_name = {declared.name: declared for declared in self.properties}
        for name, value in values.items():
            by_name[name].__set__(self, value)

    def describe(self) -> Iterator[tuple[str, str]]:
        """(property name, value in words), for `info qtree`."""
        yield from self.fixed_properties
        for declared in self.properties:
            yield declared.name, declared.kind.show(declared.__get__(self, type(self)))

    def qdev_node(self, ident: str = "") -> QdevNode:
        """The device's node in the tree of `info qtree`."""
        return QdevNode(
            self.kind, ident, self.gpios, lambda: (f"{name} = {value}" for name, value in self.describe())
        )


@dataclass(frozen=True, slots=True)
class RegionOps:
    """One region of a device as the memory floor wants it: read and write by offset and size."""

    device: Device
    index: int
    _offset_mask: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_offset_mask", 0 if self.device.regions[self.index].one_port else -1)

    def read(self, offset: int, size: int) -> int:
        return self.device.region_read(self.index, offset & self._offset_mask, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.device.region_write(self.index, offset & self._offset_mask, size, value)

    def read_string(self, offset: int, size: int, count: int) -> bytes:
        return self.device.region_read_string(self.index, offset, size, count)


def _by_place(registers: Iterator[Register]) -> dict[tuple[int, int], tuple[Register, ...]]:
    """Registers by (region, offset), in the order of their declaration."""
    places: dict[tuple[int, int], tuple[Register, ...]] = {}
    for register in registers:
        place = (register.region, register.offset)
        places[place] = (*places.get(place, ()), register)
    return places
