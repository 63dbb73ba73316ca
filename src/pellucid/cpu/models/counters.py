"""What CPUID's leaf 0xA tells of the performance counters (SDM vol. 2, CPUID; vol. 3, 20.2)."""

VERSION, GENERAL, FIXED, WIDTH = 2, 8, 3, 48
EVENT_COUNT = 7
EVENTS_ABSENT = 1 << 3 | 1 << 4 | 1 << 6
"""Of the seven architectural events: references to the last cache, its misses, and mispredicted branches."""
