"""Usage of responses: input includes what was cached, output includes reasoning, tools are counted in calls.

Calls of the provider's own tools cost money beside the tokens. How often each was called is taken from the
provider's count where the reply has one, else from the items of its output; every choice is listed in
`docs/doors.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.core.usage import OtherUsage, Usage
from gateway.protocols.base import Dialect
from gateway.protocols.reading import Counts, reported_cost_usd, text

TOOL_OF: Final = {
    "web_search_call": "web_search",
    "x_search_call": "social_search",
    "file_search_call": "file_search",
    "code_interpreter_call": "code_interpreter",
    "image_generation_call": "image_generation",
}
"""Type of an output item -> dimension of the tool whose call it is."""


def read_usage(response: Mapping[str, Any], tools: Mapping[str, int], dialect: Dialect) -> Usage | None:
    """Return what a response object reports, or None if it reports nothing.

    Args:
        tools: calls of the provider's tools that its output shows, by dimension.
    """
    counts = Counts()
    usage = response.get("usage")
    if isinstance(usage, dict):
        _input(counts, usage)
        _output(counts, usage, dialect)
    _tools(counts, response, tools)
    painted = _painted(response)
    if painted:
        counts.values.pop("image_generation", None)  # its tokens say more than its calls
    counts.parts_within_wholes()
    if not counts.values and not counts.anomalies:
        return None
    return Usage(
        counts=counts.values,
        anomalies=tuple(counts.anomalies),
        service_tier=text(response.get("service_tier")),
        reported_cost_usd=reported_cost_usd(usage) if isinstance(usage, dict) else None,
        others=painted,
        qualifiers=counts.said,
    )


def tool_called(item: object) -> str | None:
    """Return the dimension that an item of the output counts in, None for what costs nothing by itself.

    Of what a web search does only the search is charged, not the pages that it opens and looks through.
    """
    if not isinstance(item, dict) or item.get("status") == "failed":
        return None
    kind = item.get("type")
    action = item.get("action")
    if kind == "web_search_call" and isinstance(action, dict) and action.get("type", "search") != "search":
        return None
    return TOOL_OF.get(kind) if isinstance(kind, str) else None


def _input(counts: Counts, usage: dict[str, Any]) -> None:
    counts.take("input", usage, "input_tokens", "prompt_tokens")
    details = usage.get("input_tokens_details")
    counts.take("cache_read", details, "cached_tokens") or counts.take("cache_read", usage, "cached_tokens")
    counts.take("cache_write", details, "cache_write_tokens", "cache_creation_tokens")
    for key, name in (("cache_hit", "cache_read"), ("cache_write", "cache_write")):
        if key in usage and name not in counts.values:
            counts.literal(name, key, usage[key])
    counts.take("input_audio", details, "audio_tokens")
    counts.take("input_image", details, "image_tokens")


def _output(counts: Counts, usage: dict[str, Any], dialect: Dialect) -> None:
    found = counts.take("output", usage, "output_tokens", "completion_tokens")
    details = usage.get("output_tokens_details")
    counts.take("reasoning", details, "reasoning_tokens")
    counts.take("output_audio", details, "audio_tokens")
    counts.take("output_image", details, "image_tokens")
    if not found:
        return
    values = counts.values
    reasoning = values.get("reasoning")
    total = usage.get("total_tokens")
    known_total = total if type(total) is int and "input" in values else None
    if reasoning:
        apart = known_total == values.get("input", 0) + values["output"] + reasoning
        if apart or not dialect.reasoning_in_output:
            counts.add("output", reasoning)
    parts = values.get("input", 0) + values.get("output", 0)
    if known_total is not None and "output" in values and known_total > parts:
        counts.flag("total_exceeds_sum")


def _tools(counts: Counts, response: Mapping[str, Any], tools: Mapping[str, int]) -> None:
    usage, usage_of_tools = response.get("usage"), response.get("tool_usage")
    details = usage.get("server_side_tool_usage_details") if isinstance(usage, dict) else None
    for kind, tool in TOOL_OF.items():
        counts.take(tool, details, f"{kind}s")  # xAI
    if isinstance(usage_of_tools, dict):  # OpenAI
        counts.take("web_search", usage_of_tools.get("web_search"), "num_requests")
    for tool, calls in tools.items():
        counts.values.setdefault(tool, calls)


def _painted(response: Mapping[str, Any]) -> tuple[OtherUsage, ...]:
    """Return what the model that made the images consumed, where the reply tells its tokens and its name."""
    tools, usage_of_tools = response.get("tools"), response.get("tool_usage")
    usage = usage_of_tools.get("image_gen") if isinstance(usage_of_tools, dict) else None
    if not isinstance(usage, dict) or not isinstance(tools, list):
        return ()
    models = [
        text(tool.get("model"))
        for tool in tools
        if isinstance(tool, dict) and tool.get("type") == "image_generation"
    ]
    counts = Counts()
    for side in ("input", "output"):
        counts.take(side, usage, f"{side}_tokens")
        counts.take(f"{side}_image", usage.get(f"{side}_tokens_details"), "image_tokens")
    if not models or models[0] is None or not any(counts.values.values()):
        return ()
    return (OtherUsage(model=models[0], reason="image_generation", counts=counts.values),)
