"""The node agent, one process per host, owns all bytes below the GPU; its client and data path."""
