"""Budgeting: the budgets of one process, put together from the settings, and what the metrics say of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable
from typing import Final

import httpx
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.budgets.definitions import EACH, Budget, checked, limit_of
from gateway.budgets.desk import Desk
from gateway.budgets.guard import BudgetGuard
from gateway.budgets.keeper import Keeper
from gateway.budgets.leasing import Leasing
from gateway.budgets.overview import Overview, Standing
from gateway.budgets.reservation import most_of
from gateway.budgets.spending import spending_of
from gateway.budgets.stored import Memo
from gateway.budgets.warning import Warnings
from gateway.budgets.webhooks import TIMEOUT_S, Webhooks
from gateway.control.store import Control, control_store_at
from gateway.core.money import PICO_PER_USD
from gateway.ledger.store import LedgerNewer, LedgerUnavailable
from gateway.pricing.selling import Book
from gateway.settings import Settings, SettingsError
from gateway.settings.budgets import BudgetSettings, BudgetsSettings
from otel.journal import JournalWriter
from otel.journal.files import Files
from otel.metrics import Reading, counter, gauge

MEMO: Final = "budgets-known.json"
SURVEY_S: Final = 5.0
"""How often the metrics look at the budgets."""
SERIES_MAX: Final = 500
"""Budgets with series of their own; each of a kind of payers apart has none."""
STOP_TELLING_S: Final = 2.0


class Budgeting:
    """The guard, and what is behind it.

    Attributes:
        desk: for the doors of the operator.

    Raises:
        SettingsError: a budget, or an address, cannot be used.
    """

    def __init__(self, settings: Settings, files: Files, writer: JournalWriter) -> None:
        own = settings.budgets
        directory = settings.journal.directory
        ledger_url = settings.ledger.url.get_secret_value()
        configured = configured_budgets(own)
        try:
            control, telling, about = (
                Control(control_store_at(settings.control.url.get_secret_value(), ledger_url, directory))
                for _ in range(3)
            )
            spending, looking = (spending_of(directory, ledger_url, files) for _ in range(2))
        except ValueError as fault:
            raise SettingsError(str(fault)) from fault
        self._controls = (control, telling, about)  # requests wait for the first, and for no other
        self._overview = Overview(about, looking)
        self.desk = Desk(about, self._overview, configured)
        self._webhooks = _webhooks(own, telling)
        self._keeper = Keeper(
            control,
            Leasing(
                control,
                spending,
                directory,
                writer.name,
                workers=settings.server.workers,
                forget_after_s=None if own.forget_after_h is None else own.forget_after_h * 3600,
                files=files,
            ),
            spending,
            Warnings(control, event_id=lambda: secrets.token_hex(16), webhook=own.webhook_url is not None),
            configured,
            memo=Memo(directory.parent / MEMO, files),
        )
        self._newest = lambda: writer.number
        self.collector = BudgetCollector()
        self._survey: asyncio.Task[None] | None = None

    def guard(self, settings: BudgetsSettings, book: Book) -> BudgetGuard:
        """Return what is asked for each request, with these settings and prices."""
        return BudgetGuard(
            self._keeper,
            lambda call, aims: most_of(book, call, aims, settings.assumed_output_tokens),
            self._newest,
            when_unknown=settings.when_unavailable,
            when_unpriced=settings.unpriced,
        )

    @property
    def still(self) -> asyncio.Lock:
        """To be held for `configure`."""
        return self._keeper.still

    def configure(self, configured: tuple[Budget, ...]) -> None:
        """Put other budgets in the place of those of the configuration; what was spent stays spent."""
        self._keeper.configure(configured)
        self.desk.configure(configured)

    def in_force(self) -> tuple[Budget, ...]:
        """Return all budgets that this process knows."""
        return self._keeper.budgets

    async def start(self) -> None:
        """Begin, with the journal open."""
        await self._keeper.start()
        self._survey = asyncio.create_task(self._look())
        if self._webhooks is not None:
            self._webhooks.start()

    async def stop(self) -> None:
        """End, with the journal closed and the ledger at its end."""
        if self._survey is not None:
            self._survey.cancel()
        if self._webhooks is not None:
            await asyncio.to_thread(self._webhooks.stop, STOP_TELLING_S)
        await self._keeper.stop()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._overview.close()
        for control in self._controls:
            control.close()

    async def _look(self) -> None:
        while True:  # ends with the gateway
            budgets = [budget for budget in self.in_force() if budget.payer != EACH][:SERIES_MAX]
            try:
                self.collector.standings = await asyncio.to_thread(self._overview.of, budgets)
            except (LedgerUnavailable, LedgerNewer):
                self.collector.standings = []
            await asyncio.sleep(SURVEY_S)

    def health(self) -> Iterable[Reading]:
        """Yield what the metrics say of it."""
        keeper = self._keeper
        known = int(keeper.fault is None)
        yield counter("llm_gateway_budget_refused", "Requests that a budget kept out.", keeper.refused)
        yield counter("llm_gateway_budget_warnings", "Thresholds that budgets passed.", keeper.warnings_given)
        over = keeper.overdrawn_pico / PICO_PER_USD
        yield counter("llm_gateway_budget_overdrawn_usd", "What bills were above their reservations.", over)
        yield gauge("llm_gateway_budget_known", "1 while it is known what was spent.", known, least=True)
        if self._webhooks is not None:
            failed = self._webhooks.failed
            yield counter("llm_gateway_budget_webhooks_failed", "Warnings that no webhook took.", failed)


class BudgetCollector(Collector):
    """What stands of each budget, as of the last look: the same for all workers."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def collect(self) -> Iterable[Metric]:
        """Yield a series for each budget and amount; none that is not known."""
        labels = ["budget", "scope", "payer"]
        limit = GaugeMetricFamily("llm_gateway_budget_limit_usd", "Limit of the period.", labels=labels)
        spent = GaugeMetricFamily("llm_gateway_budget_spent_usd", "Spent in this period.", labels=labels)
        reserved = GaugeMetricFamily(
            "llm_gateway_budget_reserved_usd", "Reserved by requests under way.", labels=labels
        )
        for standing in self.standings:
            names = [standing.budget.id, standing.budget.scope, standing.payer]
            limit.add_metric(names, standing.budget.limit_pico / PICO_PER_USD)
            reserved.add_metric(names, standing.reserved_pico / PICO_PER_USD)
            if standing.spent_pico is not None:
                spent.add_metric(names, standing.spent_pico / PICO_PER_USD)
        yield from (limit, spent, reserved)


def configured_budgets(settings: BudgetsSettings) -> tuple[Budget, ...]:
    """Return the budgets of the configuration.

    Raises:
        SettingsError: naming the one that cannot be used.
    """
    budgets = tuple(_budget(defined) for defined in settings.definitions)
    if len({budget.id for budget in budgets}) < len(budgets):
        raise SettingsError("budgets.definitions: each needs an id of its own")
    return budgets


def _budget(defined: BudgetSettings) -> Budget:
    try:
        return checked(
            Budget(
                id=defined.id,
                scope=defined.scope,
                payer=defined.payer,
                limit_pico=limit_of(str(defined.limit_usd)),
                span=defined.period,
                zone=defined.time_zone,
                mode=defined.mode,
            )
        )
    except ValueError as fault:
        raise SettingsError(f"budgets.definitions: {defined.id}: {fault}") from fault


def _webhooks(settings: BudgetsSettings, control: Control) -> Webhooks | None:
    if settings.webhook_url is None:
        return None
    if settings.webhook_secret is None:
        raise SettingsError("budgets.webhook_secret: a webhook needs one; `openssl rand -hex 32` makes it")
    client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)
    secret = settings.webhook_secret.get_secret_value()
    return Webhooks(control, settings.webhook_url, secret, client, now_ns=time.time_ns)
