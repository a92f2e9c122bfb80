"""Doors: how requests come in, and what stands on every response."""
