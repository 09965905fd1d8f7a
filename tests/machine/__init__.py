"""Faults of the machine: disks, clocks, kills."""
