"""Shipped fakes, for the tests of agentmem and of those who build on it."""
