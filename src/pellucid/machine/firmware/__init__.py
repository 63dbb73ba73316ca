"""What firmware would leave in memory for the guest: ACPI tables."""
