"""Audit: says of a journal folder whether it is complete and whether it is intact, and where it is not.

    segments ─▶ scan ──▶ sequence    one writer's numbers and hash chain
                  │ └──▶ pairing     one intent, one bill
                  ▼
              reconcile ◀── manifest of retention, heads of dead writers, watermarks
                  ▼
              findings  ◀── witnesses: the Collector's, a provider's, a client's log, the ledger

One pass; memory holds open intents, a small entry for each settled id, and what the logs say.
"""

from otel.journal.audit.findings import KINDS, Finding
from otel.journal.audit.folder import Logs, NoJournal, Report, audit_folder
from otel.journal.audit.ledger_rows import LedgerSays

__all__ = ["KINDS", "Finding", "LedgerSays", "Logs", "NoJournal", "Report", "audit_folder"]
