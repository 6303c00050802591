from __future__ import annotations

from pathlib import Path

from agent.runner_sockets import drain, drain_users


def test_what_lies_in_the_place_of_former_sockets_keeps_no_agent_from_starting(tmp_path: Path) -> None:
    sockets = tmp_path / "runner-of-4242/sockets"
    (sockets / "a folder.sock").mkdir(parents=True)
    (sockets / "a file.sock").touch()
    (sockets / "a link.sock").symlink_to("nowhere")
    drain_users(tmp_path, but=())
    assert [path.name for path in sockets.iterdir()] == ["a folder.sock"]
    assert drain(sockets, spare=(), uid=4242) == []
