"""Retention: which segments may go. A segment goes only when nobody can need it any more.

It is sealed, every consumer has passed all of it, none of its bills is in quarantine, no intent of it can
still be open, and it is older than the policy keeps. A writer's segments go in the order of their numbers,
so that no bill goes before its intent; those of a writer that has billed for a dead one go after the dead
one's, and revisions after all segments of their own and earlier days: a bill that outlived its revision would
be revised anew. Whatever is in doubt stays, and all that was written behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from otel.journal.segments import revises


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a segment due; None: nothing does.

    Args:
        keep_from_day: segments of earlier days (UTC) are due.
        bytes_max: while the folder's segments hold more than this, the oldest are due.
    """

    keep_from_day: str | None = None
    bytes_max: int | None = None


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one segment without reading its records.

    Args:
        name: `<day>/<file>`.
        plain: it is a file in a folder, and no link.
    """

    name: str
    writer: str
    number: int
    bytes: int
    plain: bool = True

    @property
    def day(self) -> str:
        """The UTC day in whose folder it stands."""
        return self.name.partition("/")[0]


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one writer.

    Args:
        retired: its process is gone and all of its intents have durable bills.
        oldest_open: the number of its oldest segment that may hold an open intent; None where no header of
            it can be read.
        billed_for: dead writers whose open intents it has billed.
    """

    retired: bool
    oldest_open: int | None
    billed_for: frozenset[str] = frozenset()


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A journal folder as retention sees it.

    Args:
        consumers: what each consumer has passed, by its name: offsets by segment; None where that is not
            known, because it has not begun or its cursor cannot be read.
        quarantined: segments with a bill that a consumer has put aside.
        damaged: segments of which something cannot be read.
    """

    segments: tuple[Segment, ...]
    writers: Mapping[str, Writer]
    consumers: Mapping[str, Mapping[str, int] | None]
    quarantined: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What may go, in this order, and why other segments that are due stay: the first of each writer."""

    remove: tuple[Segment, ...]
    held: Mapping[str, str]


def plan(folder: Folder, policy: Policy, count_max: int) -> Plan:
    """Return at most `count_max` segments that may go now, the oldest first."""
    left: dict[str, list[Segment]] = {}
    for segment in sorted(folder.segments, key=lambda s: s.number, reverse=True):
        left.setdefault(segment.writer, []).append(segment)
    total = sum(segment.bytes for segment in folder.segments)
    remove: list[Segment] = []
    held: dict[str, str] = {}
    stuck: set[str] = set()
    while len(remove) < count_max:  # each turn takes a segment or a writer away
        oldest = [own[-1] for writer, own in left.items() if own and writer not in stuck]
        if not oldest:
            break
        segment = min(oldest, key=lambda s: (s.day, bool(_waits_for(s, folder, left)), s.writer))
        over = policy.bytes_max is not None and total > policy.bytes_max
        if not over and (policy.keep_from_day is None or segment.day >= policy.keep_from_day):
            # The others are of this day or later; a writer that waits for this one waits on.
            break
        reason = _held(segment, folder, left)
        if reason is not None:
            held[segment.name] = reason
            stuck.add(segment.writer)
            continue
        left[segment.writer].pop()
        total -= segment.bytes
        remove.append(segment)
    return Plan(remove=tuple(remove), held=held)


def _held(segment: Segment, folder: Folder, left: Mapping[str, list[Segment]]) -> str | None:
    """Return why a segment that is due must stay, None if it may go."""
    writer = folder.writers.get(segment.writer)
    if writer is None:
        return "nothing is known of its writer"
    if not segment.plain:
        return "it is a link, or stands in one"
    if not writer.retired and (writer.oldest_open is None or segment.number >= writer.oldest_open):
        return "its writer may have an open intent in it"
    if segment.name in folder.damaged:
        return "something in it cannot be read"
    if segment.name in folder.quarantined:
        return "a bill of it is in quarantine"
    if not folder.consumers:
        return "no consumer has ever read the journal"
    for name, offsets in sorted(folder.consumers.items()):
        if offsets is None or offsets.get(segment.name, 0) < segment.bytes:
            return f"{name} has not passed it"
    waits_for = _waits_for(segment, folder, left)
    if waits_for is not None:
        what = "revise bills" if revises(segment.writer) else "hold bills for intents"
        return f"it may {what} of {waits_for}, which is still here"
    return None


def _waits_for(segment: Segment, folder: Folder, left: Mapping[str, list[Segment]]) -> str | None:
    """Return a writer whose segments must go before this one."""
    if revises(segment.writer):
        others = sorted(other for other in left if not revises(other))
        return next((other for other in others if any(s.day <= segment.day for s in left[other])), None)
    writer = folder.writers.get(segment.writer)
    billed_for = writer.billed_for if writer is not None else ()
    return next((other for other in sorted(billed_for) if left.get(other)), None)
