"""The simulated provider: everything can be tried, tested and measured with no account.

It answers as the real ones do, byte for byte in form: OpenAI's chat completions, responses and embeddings,
and Anthropic's messages; every model stands behind every door.
`simulate` is pure but for its `State`; the shells only wait and deliver.

    model                reply                                        usage
    sim-small            text, or a call of the first tool            counts alone (no cache fields)
    sim-large            the same                                     with every detail reported as 0
    sim-cache            the same                                     cache write first, then cache read
    sim-reasoning        thinks first                                 with reasoning tokens
    sim-slow             50 ms a chunk                                as sim-small
    sim-flaky            503 first, then fine, for each content       as sim-small
    sim-cut              the connection dies half way                 -
    sim-midstream-error  an error event inside a 200 stream           -
    sim-nousage          the same as sim-small                        none, asked for or not
    sim-err-<400..599>   that status in the protocol's envelope       -

A token is four bytes of UTF-8, begun ones counted, at least one. "120 words" in the last user message asks
for a reply of 120 words.
"""

from gateway.providers.simulated.script import Piece, Script, simulate
from gateway.providers.simulated.shells import SimulatedApp, SimulatedTransport, simulated_app
from gateway.providers.simulated.state import State

__all__ = ["Piece", "Script", "SimulatedApp", "SimulatedTransport", "State", "simulate", "simulated_app"]
