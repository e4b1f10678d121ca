"""`accelerate launch` with the stage's exit status, and without the launcher's traceback below its message.

    python -m tiebreak.command.accelerated --config_file configs/accelerate/zero2.yaml -m tiebreak.command.cli dpo
    --config …

is what `tiebreak dpo --accelerate zero2` starts. Plain `accelerate launch` does the same work.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from types import FrameType
from typing import Any

from tiebreak.process.children import end_after_grace, signal_children
from tiebreak.process.ending import exit_with_message
from tiebreak.process.settings import quiet_upstream
from tiebreak.process.stopping import SIGNALS


def main() -> None:
    """Launch the command, and exit with the status of the first process that failed."""
    exit_with_message(_launch, resumes=True)


def _launch() -> None:
    quiet_upstream()
    _leave_signals_to_the_workers()
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # the launcher's defaults, and failures that the stage has reported
    try:
        launch_command(launch_command_parser().parse_args())
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(_status_of(failure.exitcode)) from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(_status_of(error.returncode)) from None
    except SignalException as error:
        raise SystemExit(_status_of(-int(_number_of(error.sigval)))) from None


def _leave_signals_to_the_workers() -> None:
    """Forward them, and end as the workers do. Slurm signals every process; torch's launcher would end its workers after
    30 s, with a status of its own."""
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    for number in SIGNALS:
        signal.signal(number, _pass_on)


def _pass_on(number: int, _frame: FrameType | None) -> None:
    if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        end_after_grace()
    if number != signal.SIGINT:  # in a terminal, the workers get Ctrl-C themselves
        signal_children(number)


def _status_of(returncode: int) -> int:
    """A shell's status: 128 plus the signal's number, if a signal ended the process."""
    return 128 - returncode if returncode < 0 else returncode


def _number_of(value: Any) -> int:
    return value.value if isinstance(value, signal.Signals) else int(value)


if __name__ == "__main__":
    main()
