"""The journal: the truth of every bill; the ledger, the metrics and the exported spans are folds of it."""

from otel.journal.lines import Kind
from otel.journal.policy import Bounds, Durability
from otel.journal.segments import JournalUnavailable
from otel.journal.writer import JournalWriter

__all__ = ["Bounds", "Durability", "JournalUnavailable", "JournalWriter", "Kind"]
