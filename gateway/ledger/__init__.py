"""Ledger: the journal as rows that people query and budgets are enforced from.

    journal ──lines──▶ projection ──rows──▶ store (SQLite or PostgreSQL)
                ▲                             │
                └───────── cursor ◀───────────┘   rows and cursor in one transaction

The journal is the truth. A ledger that is lost or broken is made again from it with the same sums; what
retention has removed from the journal is in the ledger alone, and is never given up silently.
"""
