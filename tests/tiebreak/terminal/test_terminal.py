"""What a terminal shows, and that a pipe gets the same as plain text."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from support import REPOSITORY

from tiebreak.terminal import Cell, coloured, has_colours, plain, rule, say, table, tick, width_of, wrapped
from tiebreak.terminal.bars import Bar, duration
from tiebreak.terminal.progress import Lines, Screen, progress, screen

CLI = [sys.executable, "-m", "tiebreak.command.cli"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def in_terminal(words: list[str], **environment: str) -> str:
    """What `tiebreak …` writes to a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, 120))
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm-256color", **environment}
    with subprocess.Popen([*CLI, *words], cwd=REPOSITORY, env=variables, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # its other end is closed
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode is not None
    return written.decode().replace("\r\n", "\n")


# --- lines


def test_an_error_is_coloured_in_a_terminal_and_plain_elsewhere() -> None:
    message = "error: no such command: evalaute; did you mean evaluate? ('tiebreak --help' lists them)\n"
    assert in_terminal(["evalaute"]) == message.replace("error:", "\x1b[1;31merror:\x1b[0m")
    assert in_terminal(["evalaute"], NO_COLOR="1") == message
    assert in_terminal(["evalaute"], TERM="dumb") == message
    piped = subprocess.run([*CLI, "evalaute"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert piped.stderr == message


def test_help_is_bold_in_a_terminal_only() -> None:
    assert "\x1b[1moptions\x1b[0m" in in_terminal(["dpo", "--help"])
    assert "\x1b" not in in_terminal(["dpo", "--help"], NO_COLOR="1")


def test_labels_and_paths_that_exist(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.touch()
    dim = f"\x1b[2m{file}\x1b[0m"
    assert coloured(f"saved: {file} (1 file)") == f"\x1b[32msaved:\x1b[0m {dim} (1 file)"
    assert coloured(f"look at {file}: it/s, {tmp_path}/none") == f"look at {dim}: it/s, {tmp_path}/none"
    assert coloured(f"next: tiebreak data {file}") == f"\x1b[36mnext:\x1b[0m tiebreak data {file}"  # to be copied
    assert coloured("a \x1b[32mmask\x1b[0m") == "a \x1b[32mmask\x1b[0m"
    assert coloured("x" * 5000 + "/y") == "x" * 5000 + "/y"  # longer than any file's name


def test_lines_break_between_words_and_commands_do_not() -> None:
    assert wrapped("  one two three", 11) == ["  one two", "  three"]
    assert wrapped("next: tiebreak data x", 10) == ["next: tiebreak data x"]
    assert wrapped("", 10) == [""]


def test_text_from_data_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plain("a\x1b[31mred\x1b[2J\x07\r\x9b5mb\tc\nd") == "ared5mb\tc\nd"
    say("\x1b[1mone\x1b[0m", "two")
    assert capsys.readouterr().err == "one\ntwo\n"


def test_only_the_main_process_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    say("x")
    with progress(1, "work") as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_the_heading_and_the_end_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        rule("[2/9] sft")
        tick("sft", "1:33")
        shown = stream.getvalue()
        assert has_colours(stream) is ("\x1b" in shown) is isinstance(stream, Terminal)
        lines = plain(shown).splitlines()
        assert lines[0] == ""
        assert re.fullmatch(r"── \[2/9\] sft ─{67}" if has_colours(stream) else r"\[2/9\] sft", lines[1])
        assert lines[2] == "✓ sft  1:33"
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", ascii_only)
    tick("sft", "1:33")
    assert ascii_only.buffer.getvalue() == b"done: sft  1:33\n"  # type: ignore[attr-defined]


def test_columns_of_a_table_stand_under_one_another() -> None:
    rows: list[list[str | Cell]] = [["名前", "n"], [Cell("ab", "green"), "10"]]
    assert table(rows, colours=False) == ["名前   n", "ab    10"]
    assert table(rows, colours=True) == ["名前   n", "\x1b[32mab\x1b[0m    10"]
    assert width_of("e\u0301") == 1
    assert table([], colours=False) == []


# --- progress


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (76, "1:16"), (7533, "2:05:33")])
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_time_left_is_by_the_mean_speed_of_what_was_done_here() -> None:
    clock = Clock()
    bar = Screen(Lines(), clock).begin(100, "sampling")
    assert bar.seconds_left is None
    bar.skip_to(40)  # kept from an earlier start
    assert bar.seconds_left is None
    clock.now = 30.0
    bar.advance_to(50)
    assert bar.seconds_left == pytest.approx(150.0)  # 3 s each, 50 left
    resumed = Screen(Lines(), clock).begin(10, "training", done=5)
    clock.now = 34.0
    resumed.advance()
    assert resumed.seconds_left == pytest.approx(16.0)  # 4 s each, 4 left


def test_a_pipe_gets_a_line_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = Screen(Lines(), clock)
    bar = shown.begin(1000, "training")
    for step in range(1, 1001):
        clock.now = float(step)
        bar.advance_to(step)
        bar.show(f"loss {1 / step:.3f}")
        if step == 15:  # short work within it says nothing
            inner = shown.begin(2, "evaluating")
            inner.advance(2)
            inner.end()
    bar.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training: 10 of 1000, 0:10 passed, 16:30 left; loss 0.111"
    assert lines[1] == "training: 20 of 1000, 0:20 passed, 16:20 left; loss 0.053"
    assert lines[-1] == "training: 1000 of 1000 in 16:40; loss 0.001"
    assert not any("evaluating" in line for line in lines)
    # every 10 s up to 200 s, then after a twentieth of the time passed: ln(5) / ln(1.05) = 33 more, and the end
    assert 50 <= len(lines) <= 55


def test_a_terminal_gets_a_bar_with_what_is_printed_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with screen() as shown:
        bar = shown.begin(3, "training", done=1)
        inner: Bar = shown.begin(2, "evaluating")
        say("in between")
        inner.advance(2)
        inner.end()
        bar.advance_to(3)
        bar.show("loss 0.500")
        bar.end()
    last = plain(terminal.getvalue().rpartition("in between")[2].rpartition("training")[2])
    assert re.search(r"3/3 0:00 loss 0\.500", last)
    assert "━" in last
    assert "evaluating" not in last
    assert sys.stderr is terminal


def test_work_that_fails_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(KeyboardInterrupt), progress(3, "work"):
        raise KeyboardInterrupt
    assert sys.stderr is terminal
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back
