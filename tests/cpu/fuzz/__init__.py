"""Random guests: random code in random machines, in every mode, run where a crash does no harm.

    python -m tests.cpu.fuzz --seconds 600 --seed 7      as long as one wants; each failure says how to repeat it
    python -m tests.cpu.fuzz --seed 7 --case 1234        one case again

`code` makes instructions, `situation` the machine around them, `guest` runs one case and checks what must always
hold, `child` runs many in a process with guard pages around all native memory, `parent` watches that process, and
`compare` runs the same case on two executors.
"""
