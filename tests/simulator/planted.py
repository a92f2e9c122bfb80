"""Durability bugs to plant: each one a small, plausible edit of the product, and each one must be caught.

python -m tests.simulator.planted            plant all of them, in copies of the product
python -m tests.simulator.planted NAME       plant one, and show what caught it

A bug's seed is only where the search begins: a world whose history runs into it. When an edit of the product
changes the histories, the search takes longer, and what is printed is the new seed.
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
WORLDS_FIRST = 4
"""Worlds that are run from a bug's own seed on."""
WORLDS = 1500
"""Worlds that are run from the beginning then, before the bug counts as missed."""
PLANT_S = 900
JOBS = 4

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
    """One edit: the only occurrence of `before` in `path` becomes `after`.

    Args:
        seed: of a world that runs into it.
    """

    path: str
    before: str
    after: str
    seed: int = 0


BUGS: dict[str, Bug] = {
    # the writer
    "a sync that failed counts as done": Bug(
        WRITER,
        "        if failed is not None:\n",
        "        if False:\n",
        seed=10,
    ),
    "nothing is written again after a failed sync": Bug(
        WRITER,
        "        if self._replace_segment():\n            self._request_sync",
        "        if True:\n            self._request_sync",
        seed=7,
    ),
    "a sync covers what was written after it began": Bug(
        WRITER,
        "        self._owed.done(job.upto)\n",
        "        self._owed.done(self._number)\n",
        seed=1,
    ),
    "sealed segments are not synced": Bug(
        WRITER,
        "        retired, self._retired = self._retired, []\n",
        "        retired, self._retired = [], []\n",
        seed=30,
    ),
    "a short write passes for a whole one": Bug(
        APPENDING,
        "        if written != len(line):\n            raise",
        "        if False:\n            raise",
        seed=4,
    ),
    "after a failed write only the newest line is written again": Bug(
        WRITER,
        "owed=self._owed.lines, sealed={})",
        "owed=list(self._owed.lines)[-1:], sealed={})",
        seed=10,
    ),
    "after a failed write nothing is written again": Bug(
        WRITER,
        "self._start_segment(owed=self._owed.lines, sealed={})",
        "self._start_segment(owed=(), sealed={})",
        seed=3,
    ),
    "the segment with the failed write is written on": Bug(
        WRITER,
        "            if not self._write_again(fault) and",
        "            self._segment_now().append(line)\n            if False and",
        seed=3,
    ),
    "a sync begins before what was held back is written": Bug(
        WRITER,
        "        self._flush()\n        if not self._syncing and",
        "        if not self._syncing and",
    ),
    "what was held back is lost with its segment": Bug(
        WRITER,
        "        self._flush()\n        if self._fault is not None:\n            return False\n",
        "",
    ),
    "what a write held back is not written with it": Bug(
        APPENDING,
        '            line = b"".join([*self._held, line])\n',
        "",
    ),
    "a broken disk is reported as durable": Bug(
        WRITER,
        "        if self._fault is not None:\n            raise JournalUnavailable(self._fault, owed=True)\n",
        "        if self._fault is not None:\n            return\n",
        seed=13,
    ),
    "a bill that the disk refused is forgotten": Bug(
        WRITER,
        "        if self._fault is not None:\n            self._try_again()\n            return\n",
        "        if self._fault is not None:\n            self._owed.lines.pop()\n            return\n",
        seed=17,
    ),
    "a refused intent leaves no trace to settle": Bug(
        PIPELINE,
        "            if fault.owed:",
        "            if False:",
        seed=11,
    ),
    "the oldest open segment forgets bills that are not durable": Bug(
        OWED,
        "            self._closing.append((number, segment))",
        "            pass",
        seed=2,
    ),
    "the header says that nothing is open": Bug(
        WRITER,
        "oldest_open=self._open.oldest(self._segments, self._owed.durable_number)",
        "oldest_open=self._segments",
    ),
    "a segment's name is not made durable": Bug(
        APPENDING,
        "            files.sync_directory(path.parent)\n",
        "",
        seed=1,
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
        seed=1,
    ),
    "the readable mark covers what no sync reached": Bug(
        WRITER,
        "mark_of(self._segment.number, self._segment.size)",
        "mark_of(self._segments, self._segment.size)",
        seed=15,
    ),
    "a sync that was queued behind a failed one is believed": Bug(
        WRITER,
        "        self._trusted_from = mark_of(self._segments + 1, 0)\n        self._sync_failures",
        "        self._sync_failures",
        seed=169,
    ),
    "a sync of a segment that is to go is believed": Bug(
        WRITER,
        "                self._trusted_from = mark_of(self._segments + 1, 0)\n",
        "",
        seed=26,
    ),
    "a segment that failed is removed with what is durable in it": Bug(
        WRITER,
        "stays = old.first <= self._owed.durable_number or",
        "stays =",
        seed=3,
    ),
    "a segment that failed is removed before the next holds its records": Bug(
        WRITER,
        "            self._retired.append(old.seal())\n            stays",
        "            old.forget()\n            self._retired.append(old.seal())\n            stays",
        seed=3,
    ),
    "a header calls durable what is not": Bug(
        WRITER,
        "durable=self._owed.durable_number,",
        "durable=self._number,",
        seed=2,
    ),
    # the sync thread
    "a job does not sync its newest segment": Bug(
        SYNCING,
        "    for index, fd in enumerate(job.fds):",
        "    for index, fd in enumerate(job.fds[: job.retired]):",
        seed=1,
    ),
    "an error of a sealed segment's sync is lost": Bug(
        SYNCING,
        "        except OSError as fault:\n            failed = fault\n        if index",
        "        except OSError as fault:\n            failed = fault if index >= job.retired else failed\n        if index",
        seed=2421,
    ),
    # the order of the story
    "a stream begins before its intent is durable": Bug(
        PIPELINE,
        "            await self._stages.recorder.durable(intent)\n",
        "            pass\n",
        seed=1,
    ),
    "a stream ends before its bill is durable": Bug(
        PIPELINE,
        "        _, sequence = self._settle(ending, reply, meter.said)\n        await stages.recorder.durable(sequence)\n",
        "        _, sequence = self._settle(ending, reply, meter.said)\n",
        seed=1,
    ),
    "a whole reply goes out before its bill is durable": Bug(
        PIPELINE,
        "        await self._stages.recorder.durable(sequence)\n        await caller.start(",
        "        await caller.start(",
        seed=1,
    ),
    "the provider is called before the intent is written": Bug(
        PIPELINE,
        "        try:\n            intent",
        "        early = await self._attempts.answer()\n        if early.upstream is not None:\n"
        "            early.upstream.close()\n        try:\n            intent",
    ),
    "content goes out without its progress": Bug(
        PIPELINE,
        "            stages.recorder.progress(admitted.call, progress)\n",
        "            pass\n",
        seed=9,
    ),
    "content goes out though its progress was refused": Bug(
        PIPELINE,
        "                await self._caller.cut(admitted.protocol.error_event(fault))\n            return False",
        "                pass\n            return True",
        seed=81,
    ),
    "a caller that left is not billed": Bug(
        PIPELINE,
        "        _, sequence = self._settle(ending, reply, meter.said)\n        await stages",
        "        if gone:\n            return\n        _, sequence = self._settle(ending, reply, meter.said)\n        await stages",
        seed=2,
    ),
    "a provider that failed after the call is not billed": Bug(
        PIPELINE,
        "            _, sequence = self._settle(ending_of_fault(fault), Reply())\n"
        "            await self._stages.recorder.durable(sequence)\n            raise\n",
        "            raise\n",
        seed=1,
    ),
    # recovery
    "open intents are ignored": Bug(
        RECORDER, "    for intent in findings.open_intents:", "    for intent in findings.open_intents[:0]:"
    ),
    "progress is ignored": Bug(
        RECORDER,
        "progress = None if intent.progress is None else msgspec.json.decode(intent.progress, type=Progress)",
        "progress = None",
        seed=3,
    ),
    "writers are retired before their bills are durable": Bug(
        RECORDER,
        "        await writer.durable(number)\n",
        "        pass\n",
        seed=4,
    ),
    "writers are never retired": Bug(RECORDER, "    retire(directory, findings.dead, files)\n", ""),
    "only the dead writer's own bills count": Bug(
        RECOVERY, "            if record_id not in settled\n", "", seed=1
    ),
    "what is read was not made durable": Bug(RECOVERY, "        files.sync_file(path)\n", "", seed=2),
    "a living writer is taken for a dead one": Bug(
        RECOVERY, "if files.held(mark_path(directory, name)) is None)", "if True)"
    ),
    "only the newest segment is read": Bug(
        RECOVERY,
        "return next((header.oldest_open for header in headers if header is not None), 0)",
        "return _number(paths[-1]) if paths else 0",
    ),
    "what recovery wrote is not kept in sight": Bug(RECORDER, "    writer.pin()\n", "", seed=77),
    "a recovery that died is forgotten before those it billed": Bug(
        RECOVERY,
        "key=lambda story: not story.calls",
        "key=lambda story: bool(story.calls)",
        seed=1635,
    ),
    "the head of a dead writer is looked for behind what a power loss took": Bug(
        RECOVERY,
        "            self._beyond[number] = digest\n            return\n",
        "            self.head = (number, digest)\n            return\n",
        seed=13,
    ),
    "segments are read in the order of their days": Bug(
        SEGMENTS,
        "for _, name, segment in sorted(own, key=lambda o: o[:2])",
        "for _, name, segment in own",
        seed=2,
    ),
    # reader and shipper
    "what is not durable yet is shipped": Bug(
        SEGMENTS,
        "    return offset if name.number == number else 0",
        "    return size",
        seed=2,
    ),
    "the cursor moves before the Collector accepts": Bug(
        SHIPPER,
        "            refused = self._deliver(batch, 0, len(batch.spans))\n",
        "            self._cursor.move(batch.segment, batch.end, batch.writer, batch.seen)\n"
        "            refused = self._deliver(batch, 0, len(batch.spans))\n",
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


class Caught(NamedTuple):
    """What a world says of a bug."""

    seed: int
    breach: str


def plant(name: str) -> Caught | None:
    """Plant one bug in a copy of the product; return what caught it, None if nothing did."""
    bug = BUGS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("gateway", "otel", "deploy", "tests/simulator"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for module in ("gateway_process.py", "verified.py"):
            shutil.copy(ROOT / "tests" / module, copy / "tests")
        target = copy / bug.path
        text = target.read_text()
        assert text.count(bug.before) == 1, f"{name}: {bug.path} no longer holds the line to break"
        target.write_text(text.replace(bug.before, bug.after))
        return _search(copy, bug.seed, WORLDS_FIRST) or _search(copy, 0, WORLDS)


def _search(copy: Path, first: int, worlds: int) -> Caught | None:
    run = subprocess.run(
        [
            sys.executable,
            *("-m", "tests.simulator.run", "--until-breach"),
            *("--seed", str(first), "--worlds", str(worlds)),
        ],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=PLANT_S,
    )
    assert run.returncode in (0, BREACH), run.stderr
    if run.returncode == 0:
        return None
    seed, _, breach = run.stdout.splitlines()[-1].partition(": ")
    return Caught(int(seed), breach)


def main(names: list[str]) -> int:
    chosen = names or list(BUGS)
    missed = 0
    with ThreadPoolExecutor(JOBS) as pool:
        planted = {pool.submit(plant, name): name for name in chosen}
        for done in as_completed(planted):
            name, caught = planted[done], done.result()
            missed += caught is None
            told = "MISSED" if caught is None else f"seed {caught.seed}: {caught.breach}"
            print(f"{name}: {told}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
