"""Migrations of the control plane's database; see `gateway.ledger.migrations`, which runs them."""

from pathlib import Path
from typing import Final

from gateway.ledger.migrations import Migrations

CONTROL: Final = Migrations(Path(__file__).parent, "control_schema", "control database", "control.url")
