"""Meter: from what came back to how far it can be billed."""
