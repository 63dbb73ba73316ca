"""Every family, imported for its rows."""

from pellucid.isa import alu, control, move
from pellucid.isa.table import ROWS, Table

FAMILIES = (alu, control, move)
TABLE = Table(ROWS)
