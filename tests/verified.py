"""`spanbill verify` over folders that are in no file system: what it says against them, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from otel.journal.audit.reconcile import reconcile
from otel.journal.audit.scan import Scan, Segment, WriterFile, in_order


def verified(
    segments: Mapping[str, bytes], marks: Iterable[str], manifest: Iterable[bytes] = ()
) -> list[str]:
    """Return every breach; notes are none.

    Args:
        segments: what stands in `<day>/<file>`.
        marks: names of writers that are gone and not retired.
        manifest: lines of removed.jsonl.
    """
    audit = Scan({name: WriterFile(live=False) for name in marks})
    for name in in_order(segments):
        audit.segment(Segment(name=name, blocks=(segments[name],)))
    reconcile(audit, manifest)
    return [
        f"verify: {finding.kind}: {finding.what} at {finding.where}"
        for finding in audit.findings.shown
        if finding.verdict != "note"
    ]
