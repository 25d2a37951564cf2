"""Where a turn runs: workers, placement, admission."""
