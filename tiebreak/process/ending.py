"""How a command ends: with a message instead of a traceback, and an exit status that says why."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

from tiebreak.errors import MachineError, TiebreakError
from tiebreak.extras import missing_training_package
from tiebreak.process.stopping import Stopped, end, must_leave_within
from tiebreak.terminal import complain, process_count

UNEXPECTED_STATUS, PIPE_STATUS, INTERRUPT_STATUS = 70, 141, 130
"""exit statuses: of internal errors (sysexits' EX_SOFTWARE), and a shell's for SIGPIPE and SIGINT"""
TRACEBACK_FILE = "error.txt"
_FIRST_PROCESS_SPEAKS_SECONDS = 8.0

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FULL_ELSEWHERE = (
    *(os.strerror(number) for number in _DISK_FULL),
    *(f"os error {number}" for number in _DISK_FULL),  # safetensors and tokenizers
    "inline_container.cc",  # torch.save: the archive is cut short
    "database or disk is full",  # SQLite
)
"""Messages of a full disk from libraries that do not raise OSError."""
_READ_ONLY = "it is on a read-only file system: give another --output, or mount it writable"
_DENIED = "permission denied: give another path, or change its permissions"
_OF_THE_MACHINE = {
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EMFILE: "too many open files: raise the limit with 'ulimit -n 4096', and run the same command again",
    errno.EADDRINUSE: "the port is taken: stop the program that uses it, or choose another port",
    errno.EIO: "the disk failed (input/output error): check it, then run the same command again",
}
_OF_THE_MACHINE_ELSEWHERE = {
    "os error 30": _READ_ONLY,
    "Read-only file system": _READ_ONLY,
    "readonly database": f"the database is not writable: {_READ_ONLY.removeprefix('it is on a ')}",  # SQLite
    "os error 13": _DENIED,
    "EADDRINUSE": _OF_THE_MACHINE[errno.EADDRINUSE],  # torch.distributed
}
"""Other messages of libraries that do not raise OSError."""
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "remote process exited", "gloo/transport")
"""Messages of gloo and NCCL where the process at the other end of an exchange is gone."""
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")
_OUT_OF_MEMORY_ELSEWHERE = ("DefaultCPUAllocator: can't allocate memory", "not enough memory")


def exit_with_message(
    main: Callable[[], object], resumes: bool = False, folder: Callable[[], Path | None] = lambda: None
) -> None:
    """Run `main`, and end the process with a message instead of a traceback.

    `TIEBREAK_DEBUG=1` lets unexpected exceptions through.

    Args:
        resumes: the same command resumes from the last checkpoint.
        folder: where to write the traceback of an unexpected exception, once known.
    """
    _open_closed_streams()
    _replace_unknown_characters()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see launch.settle_process
        main()
        _flush()
    except TiebreakError as error:
        end()
        _fail(str(error), error.exit_status)
    except Stopped as stopped:
        end()
        _stop(stopped, resumes)
    except KeyboardInterrupt:
        end()
        _interrupted(resumes)
    except Exception as error:
        end()
        if _comes_from_an_interrupt(error):
            _interrupted(resumes)
        if isinstance(error, BrokenPipeError) and _leave_closed_streams():
            raise SystemExit(PIPE_STATUS) from None
        message = lost_process(error) or machine_fault(error) or missing_training_package(error)
        if message:
            _fail(message, MachineError.exit_status)
        if os.environ.get("TIEBREAK_DEBUG"):
            raise
        _fail(_unexpected(error, folder(), resumes), UNEXPECTED_STATUS)


def report_uncaught() -> None:
    """Of `python -m preference.dpo`, end with a message where importing the module fails: `main` is not reached then.

    Called by the packages while Python locates the module, so that a user's own program keeps its tracebacks.
    """
    if sys.argv[:1] == ["-m"]:  # until the module is found
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if os.environ.get("TIEBREAK_DEBUG") or isinstance(error, SystemExit):
        sys.__excepthook__(kind, error, trace)
        return

    def again() -> None:
        raise error

    exit_with_message(again)


def _interrupted(resumes: bool) -> None:
    if os.environ.get("RANK", "0") != "0" or "TIEBREAK_GROUP" in os.environ:
        raise SystemExit(INTERRUPT_STATUS)  # every process gets the signal: only the first one, or the recipe, prints
    sys.stderr.write("\n")  # after the terminal's ^C, or a progress line
    _fail("interrupted" + (": run the same command again to resume" if resumes else ""), INTERRUPT_STATUS)


def end_interrupted() -> None:
    """End the process on Ctrl-C at once: no work has started."""
    with contextlib.suppress(SystemExit):
        _interrupted(resumes=False)
    os._exit(INTERRUPT_STATUS)


def _comes_from_an_interrupt(error: Exception) -> bool:
    """transformers makes another exception of Ctrl-C while it imports, and pydantic's core a line of its message."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)) or "KeyboardInterrupt:" in str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def machine_fault(error: Exception) -> str:
    """What to do about an error of the machine (disk, permissions, memory, ports); otherwise empty."""
    name = getattr(error, "filename", None)
    if is_full_disk(error):
        where = f" while writing {name}" if name else ""
        return (
            f"no space left on the device{where}: free some space and run the same command again; "
            "finished stages and complete checkpoints are kept"
        )
    without_memory = type(error).__name__ in _OUT_OF_MEMORY or getattr(error, "errno", None) == errno.ENOMEM
    if without_memory or any(words in str(error) for words in _OUT_OF_MEMORY_ELSEWHERE):
        return (
            "not enough memory: lower training.tokens_per_pass, training.per_device_batch_size (or batch_size), or "
            "training.max_length_tokens, and run the same command again"
        )
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{name}: {_OF_THE_MACHINE[error.errno]}" if name else _OF_THE_MACHINE[error.errno]
    return next((what for words, what in _OF_THE_MACHINE_ELSEWHERE.items() if words in str(error)), "")


def lost_process(error: Exception) -> str:
    """The message for an exchange with another process of a launch that has ended; otherwise empty.

    That process printed its own error, or a signal ended it: this one has none.
    """
    several = process_count() > 1
    if not several or not any(words in str(error) for words in _LOST_PROCESS):
        return ""
    return "another process of this launch has ended, so this one stops too; what that one reported is above"


def is_full_disk(error: Exception) -> bool:
    """Whether an error means that the disk is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    return any(message in str(error) for message in _DISK_FULL_ELSEWHERE)


def _stop(stopped: Stopped, resumes: bool) -> None:
    message = f"\n{stopped}" if stopped.number != signal.SIGINT else stopped.kept
    if message and os.environ.get("RANK", "0") == "0":
        complain(message)
    if stopped.number == signal.SIGINT:
        _interrupted(resumes)
    raise SystemExit(stopped.exit_status)


def end_stopped(number: int) -> None:
    """End the process on a signal at once: no work has started."""
    with contextlib.suppress(SystemExit):
        _stop(Stopped(number), resumes=False)
    os._exit(Stopped(number).exit_status)


def _unexpected(error: Exception, folder: Path | None, resumes: bool) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    traceback_path = _keep_traceback(folder)
    where = (
        f"the traceback is in {traceback_path}"
        if traceback_path
        else "TIEBREAK_DEBUG=1 before the command shows the traceback"
    )
    again = "; the same command resumes from the last checkpoint" if resumes else ""
    return (
        f"{type(error).__name__}{f': {first}' if first else ''}\n"
        f"  This is a bug in Tiebreak or in a library, not in your input: {where}{again}."
    )


def _keep_traceback(folder: Path | None) -> Path | None:
    """Write the current exception's traceback into the run folder, or into the temporary folder."""
    rank = int(os.environ.get("RANK", "0"))
    name = TRACEBACK_FILE if not rank else f"error-{rank}.txt"
    with contextlib.suppress(OSError):
        if folder is not None and folder.is_dir():
            (folder / name).write_text(traceback.format_exc(), encoding="utf-8")
            return folder / name
        descriptor, path = tempfile.mkstemp(prefix="tiebreak-error-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        return Path(path)
    return None


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _open_closed_streams() -> None:
    """Give a process that was started without its streams (`2>&-`) ones that lead nowhere.

    Otherwise the next file to be opened gets a stream's number, and what libraries print is written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)  # by now another file may have the number
            except OSError:
                os.dup2(nowhere, number)
            os.set_inheritable(nowhere, nowhere == number)
            setattr(sys, name, os.fdopen(nowhere, mode))


def _replace_unknown_characters() -> None:
    """In a terminal whose encoding lacks a character, as `…` in Latin-1, a question mark is printed for it."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):  # the locale C
        sys.stdout.reconfigure(errors="replace")


def _leave_closed_streams() -> bool:
    """Redirect output streams whose reader has exited (`tiebreak … | head`) to nothing; whether there was one."""
    closed = [stream for stream in (sys.stdout, sys.stderr) if _reader_has_gone(stream)]
    for stream in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(closed)


def _reader_has_gone(stream: TextIO) -> bool:
    try:
        watched = select.poll()
        watched.register(stream.fileno(), 0)
        return any(event & select.POLLERR for _, event in watched.poll(0))
    except (OSError, ValueError):  # not backed by a file
        return False


def _fail(message: str, status: int) -> None:
    if os.environ.get("RANK", "0") != "0" and must_leave_within(_FIRST_PROCESS_SPEAKS_SECONDS):
        raise SystemExit(status)  # an error of all processes is reported once: the launcher ends this one
    try:
        complain(f"error: {message}")
    except BrokenPipeError:
        _leave_closed_streams()
    raise SystemExit(status)
