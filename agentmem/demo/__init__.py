"""`agentmem demo`: the whole promise, shown on this machine with a real engine and real bytes."""
