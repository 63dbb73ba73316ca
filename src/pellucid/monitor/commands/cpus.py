"""The processors: registers, which there are, which models there could be."""

from typing import Annotated, Literal

from pellucid.cpu.models import alias_of, describe_models, resolve
from pellucid.cpu.models.features import feature_names
from pellucid.errors import PellucidError
from pellucid.machine.config import CPU_PROPERTIES, CpuConfig, MachineConfig
from pellucid.machine.cpu_model import LEVELS, configured_model
from pellucid.monitor.command import Marker, command
from pellucid.monitor.errors import CommandError, SyntaxProblem
from pellucid.monitor.objects import vcpu_path
from pellucid.monitor.registers import registers_text
from pellucid.monitor.session import Session
from pellucid.records import dataclass, field
from pellucid.runtime import VcpuThread

TYPE_SUFFIX = "-x86_64-cpu"
All = Annotated[bool, Marker("flag", "a")]


@command(
    info="registers",
    help="show the cpu registers (-a: show register info for all cpus; vcpu: specific vCPU to query; show the current "
    "CPU's registers if no argument is specified)",
    syntax="[-a|vcpu]",
)
def registers(session: Session, everyone: All, vcpu: int | None = None) -> str:
    """Registers of one CPU or of all."""
    if everyone:
        count = len(session.threads)
        return "".join(registers_text(cpu, session.registers(cpu)) for cpu in range(count))
    number = session.cpu if vcpu is None else vcpu
    if not 0 <= number < len(session.threads):
        return f"CPU#{number} not available\n" if vcpu is not None else "No CPU available\n"
    return registers_text(number, session.registers(number))


@command(hmp="cpu", help="set the default CPU")
def cpu(session: Session, index: int) -> None:
    """The CPU to talk about from now on."""
    if not 0 <= index < len(session.threads):
        raise SyntaxProblem("invalid CPU index")
    session.cpu = index


@dataclass(frozen=True)
class CpuInstanceProperties:
    """Where a CPU sits."""

    node_id: int | None = None
    socket_id: int | None = None
    die_id: int | None = None
    core_id: int | None = None
    thread_id: int | None = None


@dataclass(frozen=True)
class CpuInfoFast:
    """A CPU that is there."""

    cpu_index: int
    qom_path: str
    thread_id: int
    target: str
    props: CpuInstanceProperties | None = None


def _place(config: MachineConfig, index: int) -> CpuInstanceProperties:
    topology = config.topology
    socket, die, core, thread = topology.place(index)
    return CpuInstanceProperties(
        socket_id=socket, die_id=die if topology.dies > 1 else None, core_id=core, thread_id=thread
    )


@command("query-cpus-fast")
def query_cpus_fast(session: Session) -> list[CpuInfoFast]:
    """The CPUs, without stopping any."""
    config = session.machine.config
    return [
        CpuInfoFast(thread.index, vcpu_path(thread), thread.thread_id, "x86_64", _place(config, thread.index))
        for thread in session.threads
    ]


@command(info="cpus", help="show infos for each CPU")
def cpus(session: Session) -> str:
    """Each CPU's host thread; a star at the one talked about."""

    def line(thread: VcpuThread) -> str:
        star = "*" if thread.index == session.cpu else " "
        return f"{star} CPU #{thread.index}: thread_id={thread.thread_id}\n"

    return "".join(map(line, session.threads))


@dataclass(frozen=True)
class HotpluggableCpu:
    """A place for a CPU. Those without `qom_path` are empty, and stay so: none can be plugged yet."""

    type: str
    vcpus_count: int
    props: CpuInstanceProperties
    qom_path: str | None = None


@command("query-hotpluggable-cpus")
def query_hotpluggable_cpus(session: Session) -> list[HotpluggableCpu]:
    """The places, the last first, as QEMU lists them."""
    if not session.threads:
        raise CommandError("The feature 'query-hotpluggable-cpus' is not enabled")
    config = session.machine.config
    kind = config.cpu.model + TYPE_SUFFIX
    paths = {thread.index: vcpu_path(thread) for thread in session.threads}
    places = reversed(range(config.topology.places))
    return [HotpluggableCpu(kind, 1, _place(config, place), paths.get(place)) for place in places]


def _hotpluggable_text(found: list[HotpluggableCpu]) -> str:
    lines = ["Hotpluggable CPUs:"]
    for place in found:
        lines += [f'  type: "{place.type}"', f'  vcpus_count: "{place.vcpus_count}"']
        if place.qom_path is not None:
            lines.append(f'  qom_path: "{place.qom_path}"')
        props = place.props
        levels = {"socket": props.socket_id, "die": props.die_id, "core": props.core_id, "thread": props.thread_id}
        lines.append("  CPUInstance Properties:")
        lines += [f'    {level}-id: "{number}"' for level, number in levels.items() if number is not None]
    return "\n".join(lines) + "\n"


@command(info="hotpluggable-cpus", help="Show information about hotpluggable CPUs")
def hotpluggable_cpus(session: Session) -> str:
    """The same for people."""
    return _hotpluggable_text(query_hotpluggable_cpus(session))


@dataclass(frozen=True)
class CpuDefinitionInfo:
    """A model that -cpu takes. `unavailable_features`: what it has in hardware and not here."""

    name: str
    static: bool
    typename: str
    deprecated: bool
    migration_safe: bool | None = None
    alias_of: str | None = None
    unavailable_features: list[str] = field(default_factory=list)


@command("query-cpu-definitions")
def query_cpu_definitions(session: Session) -> list[CpuDefinitionInfo]:
    """Every model."""
    return [
        CpuDefinitionInfo(
            name,
            static=name == "base",
            typename=name + TYPE_SUFFIX,
            deprecated=False,
            migration_safe=name not in ("max", "host", "pellucid"),
            alias_of=alias_of(name),
            unavailable_features=list(resolve(name, {}).lacking),
        )
        for name in describe_models()
    ]


@dataclass(frozen=True)
class CpuModelInfo:
    """A model and how it differs from its definition."""

    name: str
    props: object = None


@dataclass(frozen=True)
class CpuModelExpansionInfo:
    """What a model comes to."""

    model: CpuModelInfo


def _cpu_config(name: str, props: dict[str, object]) -> CpuConfig:
    """-cpu as these properties would have it; CommandError for one that does not exist or has another type."""
    features: dict[str, bool] = {}
    properties: dict[str, str] = {}
    for word, value in props.items():
        if word in feature_names():
            if not isinstance(value, bool):
                raise CommandError(f"Invalid parameter type for '{word}', expected: boolean")
            features[word] = value
        elif word in CPU_PROPERTIES:
            properties[word] = {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
        else:
            raise CommandError(f"Property '{name}{TYPE_SUFFIX}.{word}' not found")
    return CpuConfig(name, features, properties)


@command("query-cpu-model-expansion")
def query_cpu_model_expansion(
    session: Session, type: Literal["static", "full"], model: CpuModelInfo
) -> CpuModelExpansionInfo:
    """The model with every feature by name, on or off, as this processor can be it."""
    if model.name not in describe_models():
        raise CommandError(f"CPU model '{model.name}' not found")
    if model.props is not None and not isinstance(model.props, dict):
        raise CommandError("Invalid parameter type for 'props', expected: dict")
    try:
        resolved = configured_model(_cpu_config(model.name, model.props or {}), warn=False)
    except PellucidError as error:
        raise CommandError(str(error)) from None
    props: dict[str, object] = {name: name in resolved.features for name in feature_names()}
    props |= {"family": resolved.family, "model": resolved.model, "stepping": resolved.stepping}
    props |= {name: getattr(resolved, name) for name in LEVELS}
    props |= {"vendor": resolved.vendor.strip("\0"), "model-id": resolved.model_id, "phys-bits": resolved.phys_bits}
    return CpuModelExpansionInfo(CpuModelInfo("base" if type == "static" else model.name, props))


@command(info="jit", help="show dynamic compiler info")
def jit(session: Session) -> str:
    """What the engine has translated for each CPU; backends without an engine have none."""
    lines = []
    for thread in session.threads:
        try:
            statistics = thread.vcpu.statistics()
        except PellucidError as error:
            raise CommandError(f"JIT information is only available with accel=tcg: {error}") from None
        lines.append(f"CPU #{thread.index}:")
        lines += [f"  {name:<24} {value}" for name, value in statistics.items()]
    return "\n".join(lines) + "\n" if lines else ""


