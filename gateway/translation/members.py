"""Members: a JSON object of a request, taken member by member; what nobody took is refused by name.

So that a field is lost only where a table says so: a reader ends with `done`, and what it neither took nor
listed there is a 400. A member that is null says nothing, in every protocol.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any, Final, cast

from gateway.core.errors import CallerError
from gateway.protocols.reading import invalid
from gateway.translation.meaning import CacheHint, Language, refused

MEMBERS_SHOWN_CHARS: Final = 128


class Members:
    """One object: `path` is where it stands, `target` the language that it is to be carried over to."""

    __slots__ = ("_left", "path", "target")

    def __init__(self, value: object, path: str, target: Language) -> None:
        """Begin to take an object apart.

        Raises:
            CallerError: 400: it is none.
        """
        if not isinstance(value, dict):
            raise invalid(path or "body", f"`{path or 'body'}` must be an object")
        self._left: dict[str, Any] = dict(value)
        self.path = path
        self.target = target

    def at(self, name: str) -> str:
        """Return the path of a member."""
        return f"{self.path}.{name}" if self.path else name

    def take(self, name: str) -> Any:
        """Return a member as it is; None if it is absent or null."""
        return self._left.pop(name, None)

    def text(self, name: str) -> str | None:
        """Return a member that must be text."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise self._misfit(name, "text")
        return value

    def needed_text(self, name: str) -> str:
        """Return a member that must be there and text."""
        value = self.text(name)
        if value is None:
            raise invalid(self.at(name), f"`{self.at(name)}` is missing")
        return value

    def flag(self, name: str) -> bool | None:
        """Return a member that must be true or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self._misfit(name, "true or false")
        return value

    def count(self, name: str) -> int | None:
        """Return a member that must be a whole number."""
        value = self.take(name)
        if value is not None and (type(value) is not int or value < 0):
            raise self._misfit(name, "a whole number")
        return value

    def number(self, name: str) -> float | None:
        """Return a member that must be a number."""
        value = self.take(name)
        if value is not None and type(value) not in (int, float):
            raise self._misfit(name, "a number")
        return None if value is None else cast("float", value)

    def inner(self, name: str) -> Members | None:
        """Return a member that must be an object."""
        value = self.take(name)
        return None if value is None else Members(value, self.at(name), self.target)

    def schema(self, name: str) -> dict[str, object] | None:
        """Return a member that must be an object and passes as it is."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise self._misfit(name, "an object")
        return value

    def objects(self, name: str) -> Iterator[Members]:
        """Yield the objects of a list; nothing if there is none."""
        value = self.take(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self._misfit(name, "a list")
        for at, item in enumerate(value):
            yield Members(item, f"{self.at(name)}[{at}]", self.target)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a member that may be one text or a list of them."""
        value = self.take(name)
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise self._misfit(name, "text or a list of texts")
        return tuple(listed)

    def only(self, name: str, *values: object, why: str = "") -> None:
        """Take a member that may say nothing but what holds anyway.

        Raises:
            CallerError: 400: it says something else.
        """
        value = self.take(name)
        # Of the same type: true is no 1 here.
        if value is not None and not any(value == one and type(value) is type(one) for one in values):
            raise self.refused(name, why)

    def cache(self) -> CacheHint | None:
        """Return the hint in `cache_control`; of an odd one its lifetime does not matter."""
        value = self.take("cache_control")
        if not isinstance(value, dict):
            return None
        lifetime = value.get("ttl")
        return lifetime if lifetime in ("5m", "1h") else ""

    def refused(self, name: str, why: str = "") -> CallerError:
        """Return the error for a member that cannot be carried over."""
        return refused(self.at(name), self.target, why)

    def done(self, dropped: Container[str] = ()) -> None:
        """End: nothing may be left but what is null or dropped by a documented rule.

        Raises:
            CallerError: 400: something is left.
        """
        for name, value in self._left.items():
            if value is not None and name not in dropped:
                raise self.refused(name[:MEMBERS_SHOWN_CHARS])

    def _misfit(self, name: str, kind: str) -> CallerError:
        return invalid(self.at(name), f"`{self.at(name)}` must be {kind}")
