"""The Responses API: bodies, objects, events and routes."""
