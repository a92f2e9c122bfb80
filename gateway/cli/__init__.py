"""The command line: `spanbill serve` and what an operator needs around it."""

from gateway.cli.main import app, main

__all__ = ["app", "main"]
