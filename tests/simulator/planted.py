"""Durability bugs to plant: each one a small, plausible edit of the product, and each one must be caught.

python -m tests.simulator.planted            plant all, one after another, in copies of the product
python -m tests.simulator.planted NAME       plant one, and show what caught it
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tests.simulator.run import BREACH

ROOT = Path(__file__).resolve().parents[2]
WORLDS = 600
"""Worlds that are run before a bug counts as missed; most are caught within a hundred."""

WRITER = "otel/journal/writer.py"
OWED = "otel/journal/owed.py"
SYNCING = "otel/journal/syncing.py"
RECOVERY = "otel/journal/recovery.py"
READER = "otel/journal/reader.py"
SHIPPER = "otel/shipper.py"
RECORDER = "gateway/recorder.py"
PIPELINE = "gateway/pipeline.py"
APPENDING = "otel/journal/appending.py"
SEGMENTS = "otel/journal/segments.py"


class Bug(NamedTuple):
    """One edit: the first occurrence of `before` in `path` becomes `after`."""

    path: str
    before: str
    after: str


BUGS: dict[str, Bug] = {
    # the writer
    "a sync that failed counts as done": Bug(
        WRITER, "        if failed is not None:\n", "        if False:\n"
    ),
    "nothing is written again after a failed sync": Bug(
        WRITER,
        "            self._replace_segment()\n            self._request_sync",
        "            self._request_sync",
    ),
    "a sync covers what was written after it began": Bug(
        WRITER, "        self._owed.done(job.upto)\n", "        self._owed.done(self._number)\n"
    ),
    "sealed segments are not synced": Bug(
        WRITER,
        "        retired, self._retired = self._retired, []\n",
        "        retired, self._retired = [], []\n",
    ),
    "a short write passes for a whole one": Bug(
        APPENDING,
        "        if written != len(line):\n            raise",
        "        if False:\n            raise",
    ),
    "after a failed write only the newest line is written again": Bug(
        WRITER, "owed=self._owed.lines)", "owed=list(self._owed.lines)[-1:])"
    ),
    "after a failed write nothing is written again": Bug(
        WRITER, "self._start_segment(owed=self._owed.lines)", "self._start_segment(owed=())"
    ),
    "the segment with the failed write is written on": Bug(
        WRITER,
        "            self._last_reason = reason_of(fault)\n            try:\n                self._replace_segment()",
        "            self._last_reason = reason_of(fault)\n            try:\n"
        "                self._segment_now().append(line)",
    ),
    "a broken disk is reported as durable": Bug(
        WRITER,
        "        if self._fault is not None:\n            raise JournalUnavailable(self._fault, owed=True)\n",
        "        if self._fault is not None:\n            return\n",
    ),
    "a bill that the disk refused is forgotten": Bug(
        WRITER,
        "            with contextlib.suppress(JournalUnavailable):\n                self._try_again()\n            return\n",
        "            self._owed.lines.pop()\n            return\n",
    ),
    "a refused intent leaves no trace to settle": Bug(
        PIPELINE, "            if fault.owed:", "            if False:"
    ),
    "the oldest open segment forgets bills that are not durable": Bug(
        OWED, "            self._closing.append((number, segment))", "            pass"
    ),
    "the header says that nothing is open": Bug(
        WRITER,
        "oldest_open=self._open.oldest(self._segments, self._owed.durable_number)",
        "oldest_open=self._segments",
    ),
    "a segment's name is not made durable": Bug(
        APPENDING, "            files.sync_directory(path.parent)\n", ""
    ),
    "the mark runs ahead of the sync": Bug(
        WRITER,
        "        self._syncer.submit(",
        "        self._files.mark(self._mark_fd, mark)\n        self._syncer.submit(",
    ),
    "nobody waits for the sync at group": Bug(
        WRITER,
        "        await waiter\n",
        "        if self._durability != 'group':\n            await waiter\n",
    ),
    # the sync thread
    "a job does not sync its newest segment": Bug(
        SYNCING,
        "    for index, fd in enumerate(job.fds):",
        "    for index, fd in enumerate(job.fds[: job.retired]):",
    ),
    "an error of a sealed segment's sync is lost": Bug(
        SYNCING,
        "        except OSError as fault:\n            failed = fault\n        if index",
        "        except OSError as fault:\n            failed = fault if index >= job.retired else failed\n        if index",
    ),
    # the order of the story
    "a stream begins before its intent is durable": Bug(
        PIPELINE, "        await stages.recorder.durable(intent)\n", ""
    ),
    "a stream ends before its bill is durable": Bug(
        PIPELINE,
        "        _, sequence = self._settle(lane, ending, reply)\n        await stages.recorder.durable(sequence)\n",
        "        _, sequence = self._settle(lane, ending, reply)\n",
    ),
    "a whole reply goes out before its bill is durable": Bug(
        PIPELINE,
        "        await self._stages.recorder.durable(sequence)\n        await caller.start(",
        "        await caller.start(",
    ),
    "the provider is called before the intent is written": Bug(
        PIPELINE,
        "        lane = self._admitted.lanes[0]\n        try:\n            intent",
        "        lane = self._admitted.lanes[0]\n        early = await self._call(lane)\n        early.close()\n"
        "        try:\n            intent",
    ),
    "content goes out without its progress": Bug(
        PIPELINE, "            stages.recorder.progress(admitted.call, progress)\n", "            pass\n"
    ),
    "content goes out though its progress was refused": Bug(
        PIPELINE,
        "                await self._caller.cut(admitted.protocol.error_event(fault))\n            return False",
        "                pass\n            return True",
    ),
    "a caller that left is not billed": Bug(
        PIPELINE,
        "        _, sequence = self._settle(lane, ending, reply)\n        await stages",
        "        if gone:\n            return\n        _, sequence = self._settle(lane, ending, reply)\n        await stages",
    ),
    "a provider that failed after the call is not billed": Bug(
        PIPELINE,
        "            await self._record_fault(lane, fault, Reply())\n            raise\n        try:",
        "            raise\n        try:",
    ),
    # recovery
    "open intents are ignored": Bug(
        RECORDER, "    for intent in findings.open_intents:", "    for intent in findings.open_intents[:0]:"
    ),
    "progress is ignored": Bug(
        RECORDER,
        "progress = None if intent.progress is None else msgspec.json.decode(intent.progress, type=Progress)",
        "progress = None",
    ),
    "writers are retired before their bills are durable": Bug(
        RECORDER, "        await writer.durable(number)\n", ""
    ),
    "writers are never retired": Bug(RECORDER, "    retire(directory, findings.dead, files)\n", ""),
    "only the dead writer's own bills count": Bug(RECOVERY, "            if record_id not in settled\n", ""),
    "what is read was not made durable": Bug(RECOVERY, "        files.sync_file(path)\n", ""),
    "a bill that is written twice opens its intent again": Bug(
        RECOVERY,
        "        elif record.id in self.settled:\n            return  #",
        "        elif False:\n            return  #",
    ),
    "a living writer is taken for a dead one": Bug(
        RECOVERY, "if files.held(mark_path(directory, name)) is None)", "if True)"
    ),
    "only the newest segment is read": Bug(
        RECOVERY, "return header_of(parse(found[1])).oldest_open", "return _number(path)"
    ),
    "what recovery wrote is not kept in sight": Bug(RECORDER, "    writer.pin()\n", ""),
    # reader and shipper
    "what is not durable yet is shipped": Bug(
        SEGMENTS, "    return offset if name.number == number else 0", "    return size"
    ),
    "the cursor moves before the Collector accepts": Bug(
        SHIPPER,
        "            refused = self._deliver(batch.spans, batch)\n",
        "            self._cursor.move(batch.segment, batch.end, batch.writer, batch.seen)\n"
        "            refused = self._deliver(batch.spans, batch)\n",
    ),
    "a Collector that is away counts as one that accepted": Bug(
        SHIPPER,
        "        if isinstance(verdict, TryAgain):\n            return verdict\n",
        "        if isinstance(verdict, TryAgain):\n            return None\n",
    ),
    "a batch covers one line more than it holds": Bug(
        READER,
        "                if inner is None:\n                    continue",
        "                if inner is None or len(spans) == 6:\n                    continue",
    ),
    "a record that looks repeated is skipped too eagerly": Bug(
        READER,
        "return spans_of(line), number if number == seen + 1 else seen",
        "return spans_of(line), number + 1",
    ),
}


def plant(name: str) -> str:
    """Plant one bug in a copy of the product; return what caught it, or "" if nothing did."""
    bug = BUGS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("gateway", "otel"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "tests").mkdir()
        shutil.copytree(ROOT / "tests" / "simulator", copy / "tests" / "simulator")
        shutil.copy(ROOT / "tests" / "gateway_process.py", copy / "tests")
        shutil.copytree(ROOT / "deploy", copy / "deploy")
        target = copy / bug.path
        text = target.read_text()
        assert bug.before in text, f"{name}: {bug.path} no longer holds the line to break"
        target.write_text(text.replace(bug.before, bug.after, 1))
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.simulator.run",
                "--until-breach",
                "--jobs",
                "1",
                "--worlds",
                str(WORLDS),
            ],
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=900,
        )
    assert run.returncode in (0, BREACH), f"{name}: {run.stderr}"
    return "" if run.returncode == 0 else run.stdout.splitlines()[-1]


def main(names: list[str]) -> int:
    chosen = names or list(BUGS)
    missed = 0
    with ThreadPoolExecutor(4) as pool:
        planted = {pool.submit(plant, name): name for name in chosen}
        for done in as_completed(planted):
            name, caught = planted[done], done.result()
            missed += not caught
            print(f"{'caught' if caught else 'MISSED'}  {name}: {caught}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
