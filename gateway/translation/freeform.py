"""Free-form tools, whose input is any text: offered to others as functions of one text, and read back.

A chat or responses client may offer them (`custom`); no other protocol and few providers know them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.translation.meaning import Call, Conversation, Part, Tool, Turn

INPUT: Final = "input"
_SCHEMA: Final[dict[str, object]] = {
    "type": "object",
    "properties": {INPUT: {"type": "string", "description": "The whole input of the tool."}},
    "required": [INPUT],
    "additionalProperties": False,
}


def names_of(meant: Conversation) -> frozenset[str]:
    """Return the names of the free-form tools."""
    return frozenset([tool.name for tool in meant.tools if tool.freeform])


def as_functions(meant: Conversation) -> Conversation:
    """Return the conversation with functions in their place."""
    if not names_of(meant) and not any(
        isinstance(part, Call) and part.freeform for turn in meant.turns for part in turn.parts
    ):
        return meant
    return msgspec.structs.replace(
        meant,
        tools=tuple([_function(tool) for tool in meant.tools]),
        turns=tuple(
            [
                Turn(role=turn.role, parts=tuple([_called(part) for part in turn.parts]))
                for turn in meant.turns
            ]
        ),
    )


def _function(tool: Tool) -> Tool:
    if not tool.freeform:
        return tool
    description = tool.description or ""
    if tool.grammar is not None:
        description += f"\n\nIts input follows this grammar:\n{tool.grammar}"
    return Tool(name=tool.name, description=description.strip() or None, schema=_SCHEMA)


def _called(part: Part) -> Part:
    if not isinstance(part, Call) or not part.freeform:
        return part
    arguments = msgspec.json.encode({INPUT: part.arguments}).decode()
    return Call(id=part.id, name=part.name, arguments=arguments)


def input_of(arguments: str) -> str:
    """Return the input that a call's arguments hold; arguments of another shape are the input themselves."""
    try:
        value: Any = msgspec.json.decode(arguments)
    except msgspec.MsgspecError:
        return arguments
    found = value.get(INPUT) if isinstance(value, dict) and len(value) == 1 else None
    return found if isinstance(found, str) else arguments
