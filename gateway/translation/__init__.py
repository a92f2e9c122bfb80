"""Translation: a client of one wire language, served by a provider of another. Pure, sans I/O."""

from typing import Final

from gateway.protocols import PROTOCOLS
from gateway.translation.languages import GRAMMARS
from gateway.translation.translated import Translated, Translator

_DOORS: Final = {door.name: door for door in PROTOCOLS.values()}
_PREFERRED: Final = ("messages", "responses", "chat_completions")
"""Where a provider has several: the one that can say more comes first."""
STAND_INS: Final[dict[str, tuple[str, ...]]] = {
    door: tuple([other for other in _PREFERRED if other != door]) for door in GRAMMARS
}
"""Door -> protocols that can stand in for it, in order."""
TRANSLATORS: Final[dict[tuple[str, str], Translator]] = {
    (door, other): Translator(_DOORS[door], _DOORS[other])
    for door, others in STAND_INS.items()
    for other in others
}
"""(Door, protocol of the provider) -> what stands between them."""

__all__ = ["STAND_INS", "TRANSLATORS", "Translated", "Translator"]
