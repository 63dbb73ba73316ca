"""Boards: each file lists the parts of one kind of machine."""
