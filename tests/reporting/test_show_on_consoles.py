"""show.py on a terminal, in a pipe and without Unicode: colours, blocks, bars and names that look like markup."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest
from rich.console import Console
from shown_reports import PRUNE, page

from ranp_cli.reporting import show
from ranp_cli.reporting.progress_bar import progress


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def in_terminal(monkeypatch: pytest.MonkeyPatch, print_it: Callable[[Console], None], encoding: str = "utf-8") -> str:
    """What `print_it(console)` writes to a (pseudo) terminal."""
    reader, writer = pty.openpty()
    with open(writer, "w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        print_it(show.console(width=100))
    written = b""
    with suppress(OSError):  # the end of a terminal that was closed
        while chunk := os.read(reader, 1 << 16):
            written += chunk
    os.close(reader)
    return written.decode(encoding)


def test_a_terminal_gets_colour_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_terminal(monkeypatch, lambda console: show.show_report(PRUNE, console))
    assert "\x1b[32m" in text  # green
    assert "█" in text
    assert "→" in text


def test_no_color_means_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = in_terminal(monkeypatch, lambda console: show.show_report(PRUNE, console))
    assert "\x1b" not in text
    assert "█" in text


def test_a_terminal_that_has_no_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"layers": [{"name": "größe", "neurons": 2, "kept": 1}]}
    text = in_terminal(monkeypatch, lambda console: show.show_report(report, console), encoding="ascii")
    assert "gr\\xf6\\xdfe" in text
    assert "####...." in text


@pytest.mark.parametrize("stderr", [False, True])
def test_a_pipe_gets_plain_ascii_at_100_columns(stderr: bool, capsys: pytest.CaptureFixture[str]) -> None:
    console = show.console(stderr=stderr)
    assert console.width == show.PIPE_WIDTH
    show.show_report(PRUNE, console)
    text = capsys.readouterr()[stderr]
    assert text == page(PRUNE, 100)
    assert text.isascii()
    assert "\x1b" not in text


@pytest.mark.parametrize("name", ["[red]a[/red]", "[/]", ":smile:", "\\[bold]", "a b", "[link=x]y"])
def test_names_are_not_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        "model": {"spec": name},
        "layers": [{"name": name, "op": "conv3d", "neurons": 4, "kept": 1}],
        "floored": [name],
        "not_pruned": [{"layer": name, "reason": name}],
        "uncounted_ops": [{"op": name, "module": name}],
        "outputs": {name: {"bytes": 1, "sha256": "ab" * 32}},
    }
    loose = Console(file=io.StringIO(), width=100, markup=True, emoji=True, highlight=True)
    show.show_report(report, loose)
    assert loose.file.getvalue().count(name) == 9
    show.show_error(name, show.console())
    assert capsys.readouterr().out == f"ranp: error: {name}\n"


def test_control_characters_are_written_out() -> None:
    text = page({"layers": [{"name": "a\x1b[2Jb", "neurons": 1}], "floored": ["c\x1b[31m\nd"]})
    assert "\x1b" not in text
    assert "a\\x1b[2Jb" in text


def test_an_error_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_error("no such file\n" + "x" * 500, show.console(stderr=True))
    assert capsys.readouterr().err == f"ranp: error: no such file {'x' * 500}\n"


def test_an_error_is_red_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = in_terminal(monkeypatch, lambda console: show.show_error("no", console))
    assert text == "\x1b[1;31mranp: error: \x1b[0mno\r\n"


def test_progress_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(show.console(), "scoring", 3) as advance:
        advance()
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(console: Console) -> None:
        with progress(console, "scoring [red]", 3) as advance:
            advance()
            advance(2)

    text = in_terminal(monkeypatch, run)
    assert "scoring [red]" in text
    assert "3/3" in text
