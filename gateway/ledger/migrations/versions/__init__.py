"""One module for each revision of the ledger's schema; a published one is never changed."""
