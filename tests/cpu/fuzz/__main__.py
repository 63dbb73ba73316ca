"""The fuzzer by hand; see the package's text."""

import argparse
import sys

from .child import KINDS
from .parent import fuzz


def main() -> int:
    """Exit status 1 for anything found."""
    parser = argparse.ArgumentParser(prog="python -m tests.cpu.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="CASE", help="begin with this case")
    parser.add_argument("--case", type=int, help="run this one only")
    parser.add_argument("--kind", choices=KINDS, help="do this with every case")
    options = parser.parse_args()
    first = options.first if options.case is None else options.case
    result = fuzz(options.seed, options.seconds, first=first, last=options.case, kind=options.kind)
    print(result.output, end="")
    if result.problem:
        print(result.problem)
    return 1 if result.problem else 0


if __name__ == "__main__":
    sys.exit(main())
