"""Access: who asks at a door of the operator, and what that person may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import Request

from gateway.admission.admin import AdminKey
from gateway.core.errors import CallerError
from gateway.core.exchange import Identity

Header = tuple[bytes, bytes]


class Access:
    """Tells the operator and the owners of keys apart.

    Args:
        identify: request headers -> who pays; raises CallerError 401.
    """

    def __init__(self, admin: AdminKey, identify: Callable[[Sequence[Header]], Identity]) -> None:
        self._admin = admin
        self._identify = identify

    def who(self, request: Request) -> Identity | None:
        """Return the owner of the request's key; None is the operator, who sees all.

        Raises:
            CallerError: 401, the key is neither.
        """
        headers = request.scope["headers"]
        return None if self._admin.shown_in(headers) else self._identify(headers)

    def admin_only(self, request: Request) -> None:
        """Let nobody pass but the operator.

        Raises:
            CallerError: 401 without a key that is known; 403 with a key that is not the admin key.
        """
        if self.who(request) is None:
            return
        why = "the admin key is needed here" if self._admin else "this gateway has no admin key"
        raise CallerError(
            "admin_key_needed",
            f"{why}; the operator sets it as SPANBILL_ADMIN__KEY",
            status=403,
        )
