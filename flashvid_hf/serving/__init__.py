"""A server with an OpenAI-compatible HTTP API."""
