"""Langfuse over HTTP: client, probe, and the readers that turn a stretch of time into pages with proof."""
