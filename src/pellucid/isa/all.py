"""Every family, imported for its rows."""

from pellucid.isa import alu, control, far, interrupts, move, msr, shift, system
from pellucid.isa.table import ROWS, Table

FAMILIES = (alu, control, far, interrupts, move, msr, shift, system)
TABLE = Table(ROWS)
