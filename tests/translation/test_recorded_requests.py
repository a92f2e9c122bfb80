"""Real requests through the translator: each keeps its meaning, or is refused by the name of a member."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from gateway.core.errors import CallerError
from gateway.protocols.base import Dialect
from gateway.translation.chat import asking as chat_asking
from gateway.translation.freeform import as_functions
from gateway.translation.languages import GRAMMARS
from gateway.translation.meaning import Language
from gateway.translation.messages import asking as messages_asking
from gateway.translation.responses import asking as responses_asking
from tests.recorded import recordings_of
from tests.translation.kept import flat, kept

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs" / "translation.md").read_text(encoding="utf-8")
LEFT_OUT: Final = PAGE.partition("### Left out")[2].partition("### Refused")[0]
LANGUAGES: Final[dict[str, Language]] = {
    "chat.completions": "chat_completions",
    "messages": "messages",
    "responses": "responses",
}
CARRIED_MIN: Final = 2600
"""Of the recorded requests, to the other two languages; the rest is refused, each by a documented rule."""


def requests(folder: Path) -> list[tuple[str, Language, dict[str, Any]]]:
    found = []
    for file, recording in recordings_of(folder, *LANGUAGES):
        body = (recording.get("request") or {}).get("body")
        if isinstance(body, dict):
            found.append((file, LANGUAGES[recording["api"]], body))
    return found


def test_a_recorded_request_keeps_its_meaning_or_is_refused_by_a_documented_rule(recordings: Path) -> None:
    carried: Counter[tuple[str, str]] = Counter()
    refused = 0
    for file, source, body in requests(recordings):
        for target, grammar in GRAMMARS.items():
            if target == source:
                continue
            try:
                meant = GRAMMARS[source].read_request(body, target)
                written = grammar.write_request(as_functions(meant), "m", Dialect())
            except CallerError as error:
                assert_documented(error, file)
                refused += 1
                continue
            back = grammar.read_request(json.loads(msgspec.json.encode(written)), source)
            assert flat(back) == flat(kept(meant, target)), (file, target)
            carried[source, target] += 1
    assert sum(carried.values()) > CARRIED_MIN
    assert len(carried) == 6
    assert refused > 400


def assert_documented(error: CallerError, file: str) -> None:
    assert error.status == 400, file
    assert error.param, file
    if error.code == "not_translatable":
        member = re.sub(r"\[\d+\]", "[]", error.param)
        assert f"`{member}`" in PAGE, (file, member)


@pytest.mark.parametrize(
    "dropped",
    [
        *(chat_asking.DROPPED, chat_asking.DROPPED_OF_MESSAGES, messages_asking.DROPPED),
        *(messages_asking.DROPPED_OF_PARTS, messages_asking.DROPPED_OF_TOOLS, responses_asking.DROPPED),
        *(responses_asking.DROPPED_OF_ITEMS, responses_asking.DROPPED_OF_PARTS),
    ],
)
def test_what_is_left_out_is_named_on_the_page(dropped: dict[str, str]) -> None:
    for member in dropped:
        assert f"`{member}`" in LEFT_OUT, member


def test_a_request_in_its_own_language_means_the_same_again(recordings: Path) -> None:
    """What a reader reads, the writer of the same language can say: but for what only a caller can."""
    again = 0
    for file, source, body in requests(recordings):
        try:
            meant = GRAMMARS[source].read_request(body, source)
            written = GRAMMARS[source].write_request(as_functions(meant), "m", Dialect())
        except CallerError:
            continue
        back = GRAMMARS[source].read_request(json.loads(msgspec.json.encode(written)), source)
        assert flat(back) == flat(kept(meant, source)), file
        again += 1
    assert again > 1300


@pytest.mark.parametrize("language", sorted(GRAMMARS))
def test_a_member_that_nobody_knows_is_refused_by_its_name(language: Language) -> None:
    body = {"model": "m", "input": "hi", "messages": [{"role": "user", "content": "hi"}], "zeal": 3}
    body.pop("input" if language != "responses" else "messages")
    with pytest.raises(CallerError) as caught:
        GRAMMARS[language].read_request(body, "messages")
    assert (caught.value.status, caught.value.param) == (400, "zeal")
    assert "zeal" in caught.value.message
