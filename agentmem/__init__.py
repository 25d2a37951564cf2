"""agentmem: a stateful runtime for agent sessions."""

__version__ = "0.1.0"
