"""Access: who asks at a door of the operator, and what that person may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import Request

from gateway.admission.admin import AdminKey
from gateway.admission.permission import Holder
from gateway.core.errors import CallerError
from gateway.core.exchange import Identity

Header = tuple[bytes, bytes]


class Access:
    """Tells the operator and the owners of keys apart.

    Args:
        holder: request headers -> who pays, and for what; raises CallerError 401, GatewayFault 503.
    """

    def __init__(self, admin: AdminKey, holder: Callable[[Sequence[Header]], Holder]) -> None:
        self._admin = admin
        self._holder = holder

    def who(self, request: Request) -> Identity | None:
        """Return the owner of the request's key; None is the operator, who sees all.

        Raises:
            CallerError, GatewayFault: see `holder`.
        """
        holder = self.holder(request)
        return None if holder is None else holder.identity

    def holder(self, request: Request) -> Holder | None:
        """Return the holder of the request's key; None is the operator.

        Raises:
            CallerError: 401, the key is neither.
            GatewayFault: 503, that cannot be told now.
        """
        headers = request.scope["headers"]
        return None if self._admin.shown_in(headers) else self._holder(headers)

    def operator_in(self, headers: Sequence[Header]) -> bool:
        """Say whether a request shows the operator's key, perhaps beside one that pays."""
        return self._admin.shown_in(headers)

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
