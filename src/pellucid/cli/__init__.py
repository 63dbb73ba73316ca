"""The command line: QEMU's options, `pellucid doctor`, and the default guest of `make run`."""
