"""Random region trees of which a dump tells everything: what it does not tell is left out.

A dump does not say which of two equals was added last, whether a region with others in it answers between them, nor
what is read-only apart from ROM. So siblings have priorities of their own, only containers hold others, each container
holds something, and only RAM is read-only.
"""

import random

from pellucid.memory import AddressSpace, MemoryRegion, RegionKind

SPAN = 0x400
LEAVES = (RegionKind.IO, RegionKind.RAM, RegionKind.RAM, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE)


def random_spaces(rng: random.Random) -> list[AddressSpace]:
    """Up to three address spaces, whose aliases show parts of each other and of what is in none of them."""
    made: list[MemoryRegion] = []
    spaces = [AddressSpace(f"as{number}", _container(rng, made, SPAN, 0)) for number in range(rng.randrange(1, 4))]
    if rng.random() < 0.5:
        spaces.append(AddressSpace("twin", spaces[0].root))
    return spaces


def _container(rng: random.Random, made: list[MemoryRegion], size: int, depth: int) -> MemoryRegion:
    container = MemoryRegion.new_container(f"c{len(made)}", size)
    made.append(container)
    priorities = list(range(-3, 6))
    rng.shuffle(priorities)
    for priority in priorities[: rng.randrange(1, 6)]:
        region = _region(rng, made, depth + 1)
        try:
            container.add_subregion_overlap(rng.randrange(SPAN), region, priority)
        except ValueError:  # it would show itself
            continue
        region.set_enabled(rng.random() < 0.85)
    if not container.subregions:
        container.add_subregion(0, _leaf(rng, made))
    return container


def _region(rng: random.Random, made: list[MemoryRegion], depth: int) -> MemoryRegion:
    what = rng.random()
    if what < 0.3 and depth < 4:
        return _container(rng, made, rng.randrange(2, SPAN), depth)
    if what < 0.6:
        target = rng.choice(made) if rng.random() < 0.7 else _leaf(rng, made)
        alias = MemoryRegion.new_alias(f"a{len(made)}", target, rng.randrange(SPAN), rng.randrange(2, SPAN))
        made.append(alias)
        return alias
    return _leaf(rng, made)


def _leaf(rng: random.Random, made: list[MemoryRegion]) -> MemoryRegion:
    region = MemoryRegion(rng.choice(LEAVES), f"r{len(made)}", rng.randrange(2, SPAN))
    region.set_readonly(region.kind is RegionKind.RAM and rng.random() < 0.3)
    region.set_nonvolatile(region.kind is RegionKind.RAM and rng.random() < 0.2)
    if rng.random() < 0.3:
        region.owner = f"dev path=/machine/unattached/device[{len(made)}]"
    made.append(region)
    return region
