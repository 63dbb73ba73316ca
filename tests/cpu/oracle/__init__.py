"""Differential test oracle: the same machine code on the host CPU and on an executor under test, compared.

    with HostCpu() as host:  # skip the test when unavailable() says why it cannot
        report = run_family(engine, host, instructions(mnemonics=["SHLD", "SHRD"]), per_code=52, seed=7)
    assert report.ok, report

`engine` is an `Executor`: `run(code, state, bits) -> Outcome`, in the address space that `layout` describes, at CPL 3.

    layout       constants of that address space, and how a case ends
    state        UserState; values makes random and edge ones
    outcome      Outcome, Fault, Executor, classify
    hostcpu      HostCpu: cases on the host CPU (trampoline: its native code; hostchild: its child process)
    catalog      which instructions there are, by feature, mnemonic and mode; what is left out, and why
    encoding     their operand forms; situation and special make start states for them; generate makes cases of both
    fuzz         random bytes as single instructions
    undefined    what the manual leaves undefined
    compare      diff, reports, run_family, run_cases
"""

from .catalog import BASE, EXTRA, MMX, SSE, X86_64_V1, X86_64_V2, X86_64_V3, X87, host_features, instructions
from .compare import Failure, Report, diff, run_cases, run_family
from .fuzz import random_cases
from .generate import Case, cases
from .hostcpu import HostCpu, HostCpuError, unavailable
from .outcome import Executor, Fault, Outcome, classify
from .state import UserState
from .undefined import Undefined, undefined

__all__ = [
    "BASE",
    "EXTRA",
    "MMX",
    "SSE",
    "X86_64_V1",
    "X86_64_V2",
    "X86_64_V3",
    "X87",
    "Case",
    "Executor",
    "Failure",
    "Fault",
    "HostCpu",
    "HostCpuError",
    "Outcome",
    "Report",
    "Undefined",
    "UserState",
    "cases",
    "classify",
    "diff",
    "host_features",
    "instructions",
    "random_cases",
    "run_cases",
    "run_family",
    "unavailable",
    "undefined",
]
