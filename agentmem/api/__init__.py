"""HTTP only: one module per surface, authentication, errors, server-sent events."""
