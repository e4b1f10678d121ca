"""`python -m tiebreak`, and the console script `tiebreak`.

Until the command line handles Ctrl-C, it ends the process silently here. Nothing can do that for Python's own start
(site, and the script that an installer writes): there, for some hundredths of a second, Python prints its traceback. So
this module and the package import next to nothing.
"""

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
