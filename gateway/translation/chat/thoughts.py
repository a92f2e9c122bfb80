"""Thoughts in chat completions: `reasoning_content`, and `reasoning_details` where something is sealed.

Neither is OpenAI's: the first is DeepSeek's and the second OpenRouter's, and others took them over.
"""

from __future__ import annotations

from typing import Any, Final

from gateway.translation.meaning import Origin, Thinking, sealed_for, unsealed
from gateway.translation.streaming import dict_of, list_of, text_of

NAMES: Final = ("reasoning_content", "reasoning")
"""Where providers put what the model thought; some write both."""


def spoken(message: dict[str, Any]) -> str:
    """Return what the model thought, as plain text; Mistral's stands among the parts of the content."""
    return next((text for name in NAMES if (text := text_of(message.get(name)))), "") or _among_parts(message)


def _among_parts(message: dict[str, Any]) -> str:
    parts = list_of(message.get("content"))
    thoughts = [thought for part in parts for thought in list_of(dict_of(part).get("thinking"))]
    return "".join([text_of(dict_of(thought).get("text")) for thought in thoughts])


def detailed(message: dict[str, Any]) -> list[Thinking]:
    """Return the thoughts of `reasoning_details`: pieces of one index are one thought until its seal.

    A seal that the gateway did not mark is nobody's here.
    """
    thoughts: list[Thinking] = []
    indexes: list[object] = []
    for detail in list_of(message.get("reasoning_details")):
        if not isinstance(detail, dict):
            continue
        seal, origin = _seal(detail)
        text = text_of(detail.get("text")) or text_of(detail.get("summary"))
        if not text and seal is None:
            continue
        index = detail.get("index")
        if thoughts and thoughts[-1].seal is None and index is not None and indexes[-1] == index:
            thoughts[-1] = Thinking(text=thoughts[-1].text + text, seal=seal, origin=origin)
        else:
            thoughts.append(Thinking(text=text, seal=seal, origin=origin))
            indexes.append(index)
    return thoughts


def _seal(detail: dict[str, Any]) -> tuple[str | None, Origin | None]:
    return unsealed(text_of(detail.get("signature")) or text_of(detail.get("data")), None)


def read(message: dict[str, Any]) -> list[Thinking]:
    """Return the thoughts of a message: the details where they are sealed, else the plain text."""
    text = spoken(message)
    details = detailed(message)
    if not text or any(thought.seal for thought in details):
        return details
    return [Thinking(text=text)]


def written(thoughts: list[Thinking]) -> dict[str, Any]:
    """Return the members of a message that hold thoughts."""
    members: dict[str, Any] = {}
    if text := "".join([thought.text for thought in thoughts]):
        members["reasoning_content"] = text
    if thoughts:
        members["reasoning_details"] = [detail(thought, at) for at, thought in enumerate(thoughts)]
    return members


def detail(thought: Thinking, at: int) -> dict[str, Any]:
    """Return a thought, or a piece of one, as an element of `reasoning_details`."""
    seal = sealed_for(thought, "chat_completions")
    if not thought.text and seal is not None and thought.origin != "messages":
        return {"type": "reasoning.encrypted", "data": seal, "index": at}
    made: dict[str, Any] = {"type": "reasoning.text", "text": thought.text, "index": at}
    if seal is not None:
        made["signature"] = seal
    return made
