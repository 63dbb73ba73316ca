"""ATA and ATAPI: the drives, the channel with its task file, and what they answer. The controllers are devices."""
