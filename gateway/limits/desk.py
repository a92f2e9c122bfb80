"""Desk: where requests ask, whichever store counts; nothing here ever blocks the event loop.

A shared store is asked in one thread, in rounds: what came meanwhile goes together into the next one.

    event loop                         thread
    ask ──▶ queue ──────────────────▶  round: settles, places to renew, asks ──▶ store
      ▲ waits at most `wait_s`           │
      └──────────── answers ◀────────────┘   no reply: the store is away

While the store is away nobody waits: requests are told so at once, and the thread tries every PROBE_S. What
was asked by a request that went on without an answer is settled as unused, so that it holds no place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeVar
from typing import Protocol as Interface

from gateway.limits.memory import MemoryStore
from gateway.limits.store import Answer, Ask, Away, Charge, Settle, SharedStore, Standing

log = logging.getLogger("spanbill.limits")

PROBE_S: Final = 0.5
"""How often a store that is away is tried."""
ROUND_MAX: Final = 256
"""Questions and settlements of one round, each."""
QUEUE_MAX: Final = 10_000
"""Questions that may wait; one more is told that the store is away."""
SETTLES_MAX: Final = 50_000
"""Settlements that are kept for a store that is away; of older ones the places come back by their lease."""
TOLD_S: Final = 60.0
"""A store that comes and goes is one line of the log in so many seconds."""


class Desk(Interface):
    """Where requests ask."""

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        ...

    async def ask(self, ask: Ask) -> Answer:
        """Return the answer.

        Raises:
            Away: there is none.
        """
        ...

    def settle(self, settle: Settle) -> None:
        """End a request; it never waits."""
        ...

    async def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """Return how counters stand, using nothing.

        Raises:
            Away: nobody knows.
        """
        ...

    async def start(self) -> None:
        """Begin; return once the store has answered, or had a moment to."""
        ...

    def stop(self) -> None:
        """End, with what is to be settled."""
        ...


class OwnDesk:
    """For a store in this process's memory."""

    up = True

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def ask(self, ask: Ask) -> Answer:
        """See `Desk.ask`."""
        return self._store.ask(ask)

    def settle(self, settle: Settle) -> None:
        """See `Desk.settle`."""
        self._store.settle(settle)

    async def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """See `Desk.look`."""
        return self._store.look(charges)

    async def start(self) -> None:
        """There is nothing to begin."""

    def stop(self) -> None:
        """There is nothing to end."""


class _Question:
    """One thing that somebody waits for."""

    __slots__ = ("answer", "asked", "dropped", "fault", "future", "loop")

    def __init__(self, asked: Ask | tuple[Charge, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.asked = asked
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.answer: Answer | None = None
        self.fault: str | None = None
        self.dropped = False

    def ring(self) -> None:
        """Wake who waits; for the event loop."""
        if not self.future.done():
            self.future.set_result(None)


class SharedDesk:
    """For a store that several processes share.

    Args:
        wait_s: how long a request waits for its answer.
        beat_s: how often places are renewed; a third of the lease.
        told: what becomes of requests while the store is away, for the log.
        start_s: how long the start, and the stop, wait for the store.
    """

    def __init__(
        self, store: SharedStore, *, wait_s: float, beat_s: float, told: str, start_s: float = 1.0
    ) -> None:
        self._store = store
        self._wait_s = wait_s
        self._beat_s = beat_s
        self._start_s = start_s
        self._told = told
        self._turn = threading.Condition()
        self._questions: deque[_Question] = deque()
        self._settles: deque[Settle] = deque(maxlen=SETTLES_MAX)
        self._places: dict[str, tuple[str, ...]] = {}
        self._stopping = False
        self._away: str | None = None
        self._told_at: float | None = None
        self._told_lost = False
        self._heard_at = time.monotonic()
        self._beat_at = 0.0
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._work, name="limits", daemon=True)

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        return self._away is None

    async def ask(self, ask: Ask) -> Answer:
        """See `Desk.ask`."""
        if self._away is not None:
            raise Away(self._away)
        question = _Question(ask, asyncio.get_running_loop())
        try:
            answer = await self._answer_to(question)
        except BaseException:
            # It may have been let in, or be about to: it must not hold a place that nobody leaves.
            nothing = tuple([0 for _ in ask.charges])
            self.settle(Settle(request_id=ask.request_id, charges=ask.charges, used=nothing))
            raise
        if answer.admitted:
            keys = tuple([charge.key for charge in ask.charges if charge.unit == "concurrent"])
            if keys:
                self._places[ask.request_id] = keys
        return answer

    def settle(self, settle: Settle) -> None:
        """See `Desk.settle`."""
        self._places.pop(settle.request_id, None)
        with self._turn:
            self._settles.append(settle)
            if self._away is None:
                self._turn.notify()

    async def look(self, charges: Sequence[Charge]) -> list[Standing]:
        """See `Desk.look`."""
        if self._away is not None:
            raise Away(self._away)
        question = _Question(tuple(charges), asyncio.get_running_loop())
        return list((await self._answer_to(question)).standings)

    async def start(self) -> None:
        """See `Desk.start`."""
        self._thread.start()
        await asyncio.to_thread(self._looked.wait, self._start_s)

    def stop(self) -> None:
        """See `Desk.stop`; a store that does not answer is not waited for long."""
        with self._turn:
            self._stopping = True
            self._turn.notify()
        self._thread.join(self._start_s)

    # on the event loop

    async def _answer_to(self, question: _Question) -> Answer:
        with self._turn:
            if len(self._questions) >= QUEUE_MAX:
                raise Away("too many requests wait for their answer")
            self._questions.append(question)
            self._turn.notify()
        try:
            async with asyncio.timeout(self._wait_s):
                await question.future
        except TimeoutError:
            pass  # of a loop that was late itself, the answer may be there all the same
        except BaseException:
            question.dropped = True
            raise
        if question.answer is not None:
            return question.answer
        question.dropped = True
        if question.fault is None and time.monotonic() - self._heard_at > self._wait_s:
            self._lost("no answer in time")
        raise Away(question.fault or "no answer in time")

    # in the thread

    def _work(self) -> None:
        self._round([], [])
        self._looked.set()
        while True:  # ends with the gateway
            with self._turn:
                if self._away is not None:
                    self._turn.wait_for(lambda: self._stopping, PROBE_S)
                else:
                    self._turn.wait_for(self._due, max(0.0, self._beat_at - time.monotonic()))
                stopping = self._stopping
                settles = _some(self._settles)
                questions = [question for question in _some(self._questions) if not question.dropped]
            if stopping and not (settles or questions):
                break
            if not self._round(settles, questions) and stopping:
                break
        self._store.close()

    def _due(self) -> bool:
        return bool(self._questions or self._settles or self._stopping or self._away is not None)

    def _round(self, settles: list[Settle], questions: list[_Question]) -> bool:
        """Ask the store once; return whether it answered."""
        looks = [question for question in questions if not isinstance(question.asked, Ask)]
        asks = [(question, question.asked) for question in questions if isinstance(question.asked, Ask)]
        now = time.monotonic()
        beating = now >= self._beat_at
        beats = list(self._places.copy().items()) if beating else []
        try:
            answers = self._store.run(settles, beats, [ask for _, ask in asks])
            for (question, _), answer in zip(asks, answers, strict=True):
                question.answer = answer
            for question in looks:
                assert isinstance(question.asked, tuple)
                question.answer = Answer(True, tuple(self._store.look(question.asked)))
        except Away as fault:
            with self._turn:
                self._settles.extendleft(reversed(settles[: SETTLES_MAX - len(self._settles)]))
            for question in questions:
                question.fault = str(fault)
            self._lost(str(fault))
        else:
            if beating:
                self._beat_at = now + self._beat_s
            self._found()
        _ring(questions)
        return self.up

    def _lost(self, why: str) -> None:
        with self._turn:
            now = time.monotonic()
            tell = self._away is None and (self._told_at is None or now - self._told_at >= TOLD_S)
            if tell:
                self._told_at, self._told_lost = now, True
            self._away = why
            self._turn.notify()
        if tell:
            log.error(f"the store of limits is away: {self._told}", extra={"why": why})

    def _found(self) -> None:
        self._heard_at = time.monotonic()
        if self._away is None:
            return
        with self._turn:
            self._away = None
            tell, self._told_lost = self._told_lost, False
        if tell:
            log.warning("the store of limits answers again, and limits hold")


Waiting = TypeVar("Waiting")


def _some(waiting: deque[Waiting]) -> list[Waiting]:
    return [waiting.popleft() for _ in range(min(ROUND_MAX, len(waiting)))]


def _ring(questions: Sequence[_Question]) -> None:
    """Wake all who wait, with one word to each event loop."""
    loops = {question.loop for question in questions}
    for loop in loops:
        mine = [question for question in questions if question.loop is loop]
        try:
            loop.call_soon_threadsafe(_ring_all, mine)
        except RuntimeError:  # it is closed: nobody waits any more
            continue


def _ring_all(questions: Sequence[_Question]) -> None:
    for question in questions:
        question.ring()
