"""The settings that every stage's process starts with: its environment, what upstream prints, and how it imports."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tiebreak.process.ending import end_interrupted, end_stopped
from tiebreak.process.stopping import leaving_at_once
from tiebreak.upstream import compile_no_inference_kernel

_RAISES = signal.default_int_handler


_UPSTREAM_NOISE = (
    "Setting accelerator to CPU",  # DeepSpeed, on every machine without a GPU
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes, without an optional faster kernel
    "mtime may not be reliable on this filesystem",  # transformers, of the order in which it deletes checkpoints
)


MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
"""glibc gives large freed blocks back to the kernel and faults them in again at every step; kept, a training step on
the CPU is 15% faster at least, and several times where page faults are slow. malloc reads them when a process starts, so
a process without them starts itself again."""


PROCESS_SETTINGS = {**MALLOC_SETTINGS, "OPENBLAS_NUM_THREADS": "1"}
"""No thread of NumPy's linear algebra, which starts them when imported and has nothing large to do here: a process that
has threads is not forked (tiebreak.process.preloaded)."""


def quiet_upstream() -> None:
    """Hide libraries' messages about normal conditions. Called before they are imported."""

    def speaks_to_the_user(record: logging.LogRecord) -> bool:
        return not any(phrase in str(record.msg) for phrase in _UPSTREAM_NOISE)

    for name in ("DeepSpeed", "bitsandbytes.backends.cpu.ops", "transformers.trainer_utils"):
        logging.getLogger(name).addFilter(speaks_to_the_user)
    # PEFT and TRL still read a name that transformers has deprecated
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    # PEFT looks for the base model's own configuration on a hub, to see whether its vocabulary has grown
    warnings.filterwarnings("ignore", message="Could not find a config file in", category=UserWarning)
    # of an adapter on embeddings that the head shares: what it is merged into is compared with what it was
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`", category=UserWarning)


@contextmanager
def while_importing() -> Iterator[None]:
    """Disables garbage collection: torch and its dependents are a million objects, none of them garbage.

    Looking through them again and again takes a sixth of that time: 7.8 s of CPU for SFT become 6.6 s, measured side by
    side. They are left out of later collections too.

    Ctrl-C ends the process at once meanwhile: imports swallow the exception that it would raise, or make another of it.
    """
    gc.disable()
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _RAISES
    if ours:
        signal.signal(signal.SIGINT, lambda *_: end_interrupted())
    try:
        with leaving_at_once(end_stopped):
            yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, _RAISES)
        gc.freeze()
        gc.enable()


def leave_out_inference_kernel() -> None:
    """Without a GPU, DeepSpeed compiles a kernel before it starts, which takes a C++ compiler and half a minute.

    Only tensor-parallel inference calls it.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import torch

        if not torch.cuda.is_available():
            compile_no_inference_kernel()


def settle_process() -> None:
    """Start this process again with our environment, unless it has it: same command, same process id."""
    missing = process_settings()
    if missing and sys.platform == "linux":
        sys.stdout.flush()
        sys.stderr.flush()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C waits until exit_with_message can answer it
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **missing})


def process_settings() -> dict[str, str]:
    """Environment for a stage's process: ours, where the user has not set them."""
    return {name: value for name, value in PROCESS_SETTINGS.items() if name not in os.environ}
