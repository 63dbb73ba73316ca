"""What each of the benchmark's loops computes in ITERATIONS iterations, found on a processor of silicon."""

ITERATIONS = 1000
EXPECTED = {
    "integer": 4033787297682000116,
    "branches": 12792923843278378366,
    "memory": 4187824416,
    "memory-far": 590236104,
    "strings": 1147948,
    "float-sse": 13874570837348240954,
    "float-packed": 217621571164733410,
    "float-x87": 13874573450105383856,
    "syscalls": 1000,
    "page-faults": 1000,
    "fork": 3000,
    "context-switch": 125180,
}
