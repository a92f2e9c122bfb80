"""Translation: a client of one wire language, served by a provider of another. Pure, sans I/O."""

from gateway.translation.translated import LANGUAGES, Translated, Translator

__all__ = ["LANGUAGES", "Translated", "Translator"]
