"""What agents do: turns over a token log, leases, hibernation, forks."""
