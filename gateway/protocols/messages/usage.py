"""Usage of messages: Anthropic counts plain input apart from cache reads and writes; here input is their sum.

In a stream `message_delta` is cumulative and overrides `message_start`, member by member, where it is not
null. The output count of `message_start` is a placeholder and is never billed. What the top level leaves
out, other iterations or an earlier message, stands in `Usage.others`. Every choice is in `docs/usage.md`.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.core.usage import OtherUsage, Usage
from gateway.protocols.messages.iterations import bounded, read_iterations
from gateway.protocols.messages.tokens import take_tokens
from gateway.protocols.reading import Counts, reported_cost_usd, text

_QUALIFIERS: Final = ("speed", "inference_geo")


def read_usage(
    usage: object,
    *,
    model: str | None = None,
    placeholder_output: bool = False,
    earlier: tuple[OtherUsage, ...] = (),
) -> Usage | None:
    """Return what a (merged) usage object reports, or None if it is no object or reports nothing.

    Args:
        model: the model that served; iterations of others are apart.
        placeholder_output: the output count comes from `message_start` alone: it is dropped and flagged.
        earlier: what earlier messages of the same stream consumed.
    """
    if not isinstance(usage, dict):
        return None
    counts = Counts()
    take_tokens(counts, usage)
    if placeholder_output:
        counts.values.pop("output", None)
        counts.values.pop("reasoning", None)
        counts.flag("output_not_reported")
    tools = usage.get("server_tool_use")
    if isinstance(tools, dict):
        counts.put("web_search", tools.get("web_search_requests"))
        counts.put("web_fetch", tools.get("web_fetch_requests"))
    others = earlier
    if usage.get("iterations"):
        others += read_iterations(counts, usage["iterations"], model)
    counts.parts_within_wholes()
    if earlier:
        counts.flag("second_message_start")
    cost = reported_cost_usd(usage)
    if not counts.values and not counts.anomalies and cost is None:
        return None
    return Usage(
        counts=counts.values,
        anomalies=tuple(counts.anomalies),
        service_tier=text(usage.get("service_tier")),
        reported_cost_usd=cost,
        others=others,
        qualifiers=_qualifiers(counts, usage),
    )


def _qualifiers(counts: Counts, usage: dict[str, Any]) -> dict[str, str]:
    found = counts.said
    for name in _QUALIFIERS:
        if name in usage and (said := text(usage[name])):
            found[name] = said
    credit = usage.get("fallback_credit")
    status = credit.get("status") if isinstance(credit, dict) else None
    if isinstance(status, dict) and (said := text(status.get("type"))):
        found["fallback_credit"] = said
    return found


class MessagesUsage:
    """Folds the events of one stream into its usage; `message_start` and `message_delta` matter."""

    __slots__ = ("_earlier", "_usage", "id", "model", "output_reported")

    def __init__(self) -> None:
        self.id: str | None = None
        self.model: str | None = None
        self._usage: dict[str, Any] | None = None
        self.output_reported = False
        self._earlier: tuple[OtherUsage, ...] = ()

    def on_start(self, message: dict[str, Any]) -> None:
        """Take the message that begins; another one before it was a message of its own."""
        identity, usage = text(message.get("id")), message.get("usage")
        if isinstance(usage, dict):
            if identity is not None and self.id is not None and identity != self.id:
                self._keep_earlier()
            self._usage = usage
            self.output_reported = False
        self.id = identity or self.id
        self.model = text(message.get("model")) or self.model

    def on_delta(self, usage: dict[str, Any]) -> None:
        """Let what the usage of a delta reports override what was known."""
        self._usage = merge(self._usage, usage)
        self.output_reported = self.output_reported or usage.get("output_tokens") is not None

    def usage(self) -> Usage | None:
        """Return the usage so far."""
        return read_usage(
            self._usage,
            model=self.model,
            placeholder_output=not self.output_reported,
            earlier=self._earlier,
        )

    def _keep_earlier(self) -> None:
        usage = read_usage(self._usage, model=self.model) if self.output_reported else None
        if usage is not None and any(usage.counts.values()):
            message = OtherUsage(model=self.model or "", reason="earlier_message", counts=usage.counts)
            self._earlier = bounded((*self._earlier, message, *usage.others))


def merge(start: dict[str, Any] | None, delta: dict[str, Any]) -> dict[str, Any]:
    """Return `start` overridden by what `delta` reports."""
    merged = dict(start or {})
    merged.update({key: value for key, value in delta.items() if value is not None})
    return merged
