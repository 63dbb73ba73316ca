"""One device per file. A device sees offsets, and gets its clock, lines and backends from the board."""
