"""The process that answers conversations. `tiebreak label` starts it where the configuration has `converse`.

    python -m labeling_ui.worker --store URL --policies RUN RUN

It takes turns from the store's queue, lets the models (a separate process, `preference.answer`) write two answers, and
stores them as a pair. A turn that was open when it was killed is taken again by the next worker. It ends with its
server, however that ends: its standard input is a pipe from there.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from labeling_ui.store.store import Store, wall_clock_ms
from labeling_ui.store.work import conversations
from tiebreak.config import SamplingConfig, Section, load_config
from tiebreak.process.ending import exit_with_message
from tiebreak.records import Completion

LOOK_SECONDS = 0.25
HOLD_AGAIN_SECONDS = conversations.HOLD_SECONDS / 3
FAILED = "no answer arrived: send the message again"


class ConverseConfig(Section):
    """Who answers in conversations, and how."""

    policies: list[str] = Field(min_length=1, max_length=2)
    """the two policies that answer: run folders, paths, hub ids or bundled:…; with only one, it answers twice"""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256)
    """how both policies' answers are drawn"""
    system: str = ""
    """the system prompt of every conversation"""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """longest conversation; a longer one is refused with a message"""
    trust_remote_code: bool = False
    """run Python code that the models contain"""


class WorkerArguments(ConverseConfig):
    """The worker's arguments."""

    store: str
    """URL of the label store"""
    store_stdin: bool = False
    """the URL is the first line of standard input; `store` only shows it"""


AnswerFunction = Callable[[conversations.Request], Sequence[Completion]]


class Answerer:
    """The models, in a process that is restarted when it has died.

    It starts at once: models take a while to load, and a model that cannot be loaded should be reported at the start.
    """

    def __init__(self, config: ConverseConfig) -> None:
        self._command = [sys.executable, "-m", "preference.answer", *flags_of(config)]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")

    def __call__(self, request: conversations.Request) -> list[Completion]:
        """Two answers.

        Raises:
            RuntimeError: there are none; the message says why.
        """
        if self._process.poll() is not None:
            self._process = self._start()
        query = {"id": request.turn_id, "messages": [message.model_dump() for message in request.messages]}
        try:
            print(json.dumps(query), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline() if self._process.stdout else ""
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(FAILED)
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return [Completion.model_validate(completion) for completion in reply["completions"]]


def flags_of(config: ConverseConfig) -> list[str]:
    """The flags that `preference.answer` shares with this worker."""
    flags = ["--policies", *config.policies, "--max-prompt-tokens", str(config.max_prompt_tokens)]
    flags += ["--trust-remote-code", str(config.trust_remote_code).lower()]
    for key, value in config.sampling.model_dump().items():
        flags += [f"--sampling.{key}", str(value)]
    return flags


def start_worker(config: ConverseConfig, store_url: str) -> subprocess.Popen[bytes]:
    """Starts the worker as a separate process; closing its standard input ends it."""
    shown = sa.make_url(store_url).render_as_string(hide_password=True)
    command = [sys.executable, "-m", "labeling_ui.worker", "--store", shown, "--store-stdin", "true", *flags_of(config)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # Ctrl-C reaches only the server
    if process.stdin is not None:  # every user of the machine can read arguments, and the URL may have a password
        process.stdin.write(f"{store_url}\n".encode())
        process.stdin.flush()
    return process


def work(store: Store, answerer: Answerer) -> None:
    """Answer turns as they arrive, forever."""
    while True:
        with store.reading() as connection:
            waiting = conversations.is_waiting(connection, wall_clock_ms())
        request = store.transact(conversations.take, durable=False) if waiting else None
        if request is None:
            time.sleep(LOOK_SECONDS)
            continue
        answer_one(store, answerer, request)


def answer_one(store: Store, answerer: AnswerFunction, request: conversations.Request) -> None:
    """Answer a turn, or give its rater the reason why not."""
    try:
        with _holding(store, request):
            completions = answerer(request)
    except (RuntimeError, ValueError) as error:
        reason = str(error)
        store.transact(lambda tx: conversations.fail(tx, request, reason))
        return
    store.transact(lambda tx: conversations.answer(tx, store.rules, request, completions))


@contextlib.contextmanager
def _holding(store: Store, request: conversations.Request) -> Iterator[None]:
    """Renews the turn's hold while the models work; it lapses soon after this process has died."""
    answered = threading.Event()

    def hold() -> None:
        while not answered.wait(HOLD_AGAIN_SECONDS):
            with contextlib.suppress(SQLAlchemyError):  # retried in the next round
                store.transact(lambda tx: conversations.hold(tx, request), durable=False)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    try:
        yield
    finally:
        answered.set()
        holder.join()


def _end_with_the_server() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m labeling_ui.worker`."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def body() -> None:
        config = load_config(WorkerArguments, words, "label worker")
        url = sys.stdin.buffer.readline().decode().rstrip("\n") if config.store_stdin else config.store
        threading.Thread(target=_end_with_the_server, daemon=True).start()
        work(Store.open(url), Answerer(config))

    exit_with_message(body)


if __name__ == "__main__":
    main()
