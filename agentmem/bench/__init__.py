"""Measurements with their limits, side by side in one run; one module per bench."""
