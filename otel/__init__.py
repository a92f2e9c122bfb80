"""Spanbill's telemetry: the billing span, the journal that keeps it, and the ways out of the process."""
