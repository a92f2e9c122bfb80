"""The journal: the truth of every bill; the ledger, the metrics and the exported spans are folds of it."""

from otel.journal.lines import Kind
from otel.journal.segments import JournalUnavailable
from otel.journal.writer import Durability, JournalWriter

__all__ = ["Durability", "JournalUnavailable", "JournalWriter", "Kind"]
