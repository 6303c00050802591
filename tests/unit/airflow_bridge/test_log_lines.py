from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_bridge.log_lines import split_lines

TEXT = 'erste Zeile\nhällo 😀\n\n{"event": "漢字"}\nno end'.encode()
LINES = TEXT.decode().split("\n")


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", range(1, len(TEXT) + 1))
def test_lines_are_the_same_wherever_chunks_are_cut(size: int) -> None:
    assert list(split_lines(cut(TEXT, size))) == LINES


def test_nothing_gives_no_line() -> None:
    assert list(split_lines([])) == []
    assert list(split_lines([b""])) == []


def test_a_line_that_is_not_ended_is_shown() -> None:
    assert list(split_lines([b"half a li"])) == ["half a li"]


def test_bytes_that_are_no_text_are_replaced_and_nul_is_kept() -> None:
    assert list(split_lines([b"a\xff\xfeb\0c\nnext\n"])) == ["a��b\0c", "next"]


def test_only_line_feeds_end_a_line() -> None:
    assert list(split_lines(["a\x0bb\x85c d\r\n".encode()])) == ["a\x0bb\x85c d\r"]


def test_an_endless_line_comes_in_pieces_that_keep_characters_whole() -> None:
    line = "😀" * 100
    pieces = list(split_lines(cut(line.encode(), 7), longest=30))
    assert "".join(pieces) == line
    assert max(len(piece.encode()) for piece in pieces) <= 30


def test_an_endless_line_without_characters_comes_in_pieces_too() -> None:
    pieces = list(split_lines(cut(b"\x80" * 100, 7), longest=30))
    assert sum(map(len, pieces)) == 100
