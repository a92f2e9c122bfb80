"""The HTTP front: what stands between a socket and the application, and lets nothing through unbounded.

Every connection, head, body and write has a bound and a deadline; a request whose framing two parties could
read differently is refused, and nothing after it is served on its connection.
"""

from gateway.front.bounds import FrontBounds
from gateway.front.link import Link
from gateway.front.protocol import FrontProtocol, front_protocol

__all__ = ["FrontBounds", "FrontProtocol", "Link", "front_protocol"]
