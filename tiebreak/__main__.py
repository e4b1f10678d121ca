"""`python -m tiebreak`, and the console script `tiebreak`.

Ctrl-C ends it in silence before the command line is there to answer it: Python itself would print a traceback.
"""

from __future__ import annotations

import os
import signal

INTERRUPTED = 130


def main() -> None:
    """Import the command line, and hand over to it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from tiebreak.command.cli import main as command_line

    command_line(on_start=lambda: signal.signal(signal.SIGINT, before))


if __name__ == "__main__":
    main()
