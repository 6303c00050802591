from __future__ import annotations

from pathlib import Path

from agent import state_dir


def test_each_process_knows_the_session_of_the_one_before(tmp_path: Path) -> None:
    first, nobody = state_dir.begin_session(tmp_path)
    second, earlier = state_dir.begin_session(tmp_path)
    assert nobody is None
    assert earlier == first != second


def test_what_cannot_be_read_is_no_session(tmp_path: Path) -> None:
    (tmp_path / "session").write_text('{"session": "not one"}')
    assert state_dir.begin_session(tmp_path)[1] is None
