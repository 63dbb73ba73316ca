"""Whole machines, started as a user starts them: `python -m pellucid.cli run` in a process of its own.

Where PELLUCID_TEST_MACHINE names another program with QEMU's options, such as qemu-system-x86_64, that one is run: it
shows whether a test asks for what a real machine does. No test's outcome depends on time, but for the limit after which
a machine counts as hung.
"""
