"""Spanbill: an LLM gateway whose traces are the bill."""

from typing import Final

__version__: Final = "0.1.0"

__all__ = ["__version__"]
