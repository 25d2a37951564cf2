"""Chat Completions: bodies, objects, streams and routes."""
