"""What the configuration says about a provider reaches the reader of its replies."""

from __future__ import annotations

import pytest

from gateway.assembly import configured_providers, place_of
from gateway.assembly_routing import routes_of
from gateway.protocols.base import Dialect
from gateway.routing.targets import Router
from gateway.settings import ProviderSettings, Settings


@pytest.mark.parametrize(
    "dialect",
    [
        Dialect(),
        Dialect(reasoning_in_output=False),
        Dialect(hidden_output=True),
        Dialect(stream_usage="always"),
        Dialect(output_limit="max_completion_tokens"),
        Dialect(reasoning_content=True),
    ],
)
def test_how_a_provider_counts_reaches_the_reader_of_its_replies(dialect: Dialect) -> None:
    own = ProviderSettings(
        base_url="http://h/v1",
        models=("m",),
        reasoning_in_output=dialect.reasoning_in_output,
        hidden_output=dialect.hidden_output,
        stream_usage=dialect.stream_usage,
        output_limit=dialect.output_limit,
        reasoning_content=dialect.reasoning_content,
    )
    settings = Settings(demo=False, providers={"mine": own})
    providers = configured_providers(settings, {})
    router = Router([place_of(provider) for provider in providers.values()], None)
    (lane,) = routes_of(settings, router, providers).route("m", "chat_completions").lanes
    assert (lane.provider, lane.dialect) == ("mine", dialect)
