"""However many begin at once, a folder has one name."""

from __future__ import annotations

import threading
from pathlib import Path

from otel.journal.files import Files
from otel.journal.removed import NAME, folder_id


def test_of_several_that_name_a_folder_at_once_all_have_one_name(tmp_path: Path) -> None:
    for turn in range(50):
        folder = tmp_path / str(turn)
        begin = threading.Barrier(8)
        found: list[str] = []

        def name(folder: Path = folder, begin: threading.Barrier = begin, found: list[str] = found) -> None:
            begin.wait()
            found.append(folder_id(folder, Files()))

        threads = [threading.Thread(target=name) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(found)) == 1
        assert found[0] == folder_id(folder, Files())
        assert [path.name for path in folder.iterdir()] == [NAME]
