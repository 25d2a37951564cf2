"""Where pages lie: one module per medium."""
