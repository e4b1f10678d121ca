"""Asks a model behind an OpenAI-compatible API, in parallel, under a rate limit and a spend limit.

Every answer is appended to `answers.jsonl` in the run folder, and on disk, before it counts. A run that was killed asks
only what has no answer there; an answer on its way at that moment is the most that is paid twice. The key comes from the
environment and is written nowhere.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiebreak.config import SamplingConfig
from tiebreak.endpoint.configuration import AskingConfig, EndpointConfig
from tiebreak.errors import ConfigError, MachineError, RunError, counted
from tiebreak.process.stopping import check, deferring
from tiebreak.terminal.progress import progress

ANSWERS = "answers.jsonl"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BYTES_PER_TOKEN = 3
"""assumed of a prompt that is about to be sent, and of an answer whose tokens the endpoint does not count"""
REFUSED_FOR_GOOD = (400, 413, 422)
"""statuses with which an endpoint refuses one question, whenever it is asked"""
WRONG_FOR_ALL = (401, 403, 404)
"""statuses with which it refuses every question"""
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
"""codes of status 400 with which it refuses a key of every question"""
LIMITS = ("max_tokens", "max_completion_tokens")
"""names of the longest answer: OpenAI's reasoning models refuse the first, and other endpoints may lack the second"""
POLL_SECONDS = 0.2


class TransientError(Exception):
    """A failure that another try may not have."""

    def __init__(self, why: str, wait_seconds: float | None = None) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds
        """as the endpoint asked"""


@dataclass(frozen=True)
class Request:
    """A text to send."""

    key: str
    """its identity: an answer under the same key is used again"""
    text: str


class Endpoint:
    """A model behind an API.

    Args:
        needed_by: in the error where the client's package is missing, with the extra that installs it.
        read_cut: why an answer that was cut off is not an answer; empty if it is one.
        advice: on how to finish on less, where the spend limit stops a run.
    """

    def __init__(
        self,
        endpoint: EndpointConfig,
        asking: AskingConfig,
        sampling: SamplingConfig,
        seed: int,
        *,
        needed_by: tuple[str, str],
        read_cut: Callable[[str], str],
        advice: str = "",
    ) -> None:
        self.endpoint, self.asking, self.sampling, self.seed = endpoint, asking, sampling, seed
        self.read_cut, self.advice = read_cut, advice
        self.client = _client(endpoint, asking, *needed_by)
        self.limit_name = LIMITS[0]

    def ask(self, folder: Path, requests: Sequence[Request], what: str) -> list[dict[str, Any]]:
        """The answers in order: `text` or `fault`, `prompt_tokens`, `completion_tokens`.

        Raises:
            RunError: the spend limit is reached, or questions have no answer after all tries; the rest is on disk.
            ConfigError: the endpoint refuses the key, or has no such model.
        """
        store = AnswerFile(folder / ANSWERS)
        waiting = {request.key: request for request in requests if request.key not in store.rows}
        with progress(len(requests), what) as bar:
            bar.skip_to(sum(request.key in store.rows for request in requests))
            with deferring():
                faults = _RequestPool(self, store, waiting, bar.advance).run()
        if faults:
            raise RunError(
                f"{self.endpoint.url} left {counted(len(faults), 'question')} of {len(requests)} without an answer "
                f"({next(iter(faults.values()))}): the same command asks those again, and nothing that is answered"
            )
        return [store.rows[request.key] for request in requests]

    def complete(self, request: Request) -> dict[str, Any]:
        """One request; its answer, as a row of the file.

        Raises:
            TransientError: another try may succeed.
            ConfigError: no question will be answered.
        """
        import openai

        limit = self.limit_name
        options: dict[str, Any] = {"top_p": self.sampling.top_p} if self.sampling.top_p < 1 else {}
        options[limit] = self.sampling.max_new_tokens
        try:
            answer = self.client.chat.completions.create(
                model=self.endpoint.model,
                messages=[{"role": "user", "content": request.text}],
                temperature=self.sampling.temperature,
                seed=self.seed,
                **options,
            )
        except openai.APIStatusError as error:
            if error.status_code == 400 and error.code in UNSUPPORTED:
                self._change_request(error, limit)
                return self.complete(request)
            return self._refused(error)
        except (openai.APIError, ValueError) as error:  # no connection, too slow, or a body that is not JSON
            raise TransientError(f"{type(error).__name__}: {_short(error)}") from error
        return self._row(answer, request.text)

    def _change_request(self, error: Any, limit: str) -> None:
        """Name the longest answer as the endpoint wants it.

        Raises:
            ConfigError: it refuses another key.
        """
        if error.param == LIMITS[0] == limit:
            self.limit_name = LIMITS[1]
            return
        raise ConfigError(
            f"endpoint: {self.endpoint.url} refuses {error.param} for the model {self.endpoint.model!r} "
            f"({_short(error.message)}): set sampling to what it takes; many reasoning models take temperature 1 only"
        ) from None

    def _refused(self, error: Any) -> dict[str, Any]:
        status = int(error.status_code)
        if status in WRONG_FOR_ALL:
            why = "has no such model or path" if status == 404 else f"refuses the key in {self.endpoint.key_variable}"
            raise ConfigError(
                f"endpoint: {self.endpoint.url} {why} (status {status}, model {self.endpoint.model!r})"
            ) from None
        if status in REFUSED_FOR_GOOD:
            return {
                "fault": f"refused by the endpoint with status {status}",
                "prompt_tokens": 0,
                "completion_tokens": 0,
            }
        asked = error.response.headers.get("retry-after", "")
        seconds = float(asked) if asked.replace(".", "", 1).isdigit() else None
        raise TransientError(f"status {status}", seconds) from error

    def _row(self, answer: Any, prompt: str) -> dict[str, Any]:
        """The parts of a response that are kept. An endpoint may reply with anything: a response without choices is a
        failure."""
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list) or not choices or getattr(choices[0], "message", None) is None:
            raise TransientError("a response without choices")
        message, finish = choices[0].message, getattr(choices[0], "finish_reason", None)
        text = message.content if isinstance(message.content, str) else ""
        usage = getattr(answer, "usage", None)
        sent = getattr(usage, "prompt_tokens", None)
        written = getattr(usage, "completion_tokens", None)
        row = {
            "text": text,
            "prompt_tokens": sent if isinstance(sent, int) else math.ceil(len(prompt.encode()) / BYTES_PER_TOKEN),
            "completion_tokens": written
            if isinstance(written, int)
            else math.ceil(len(text.encode()) / BYTES_PER_TOKEN),
        }
        refusal = getattr(message, "refusal", None)
        if refusal or finish == "content_filter":
            return row | {"fault": f"a refusal: {str(refusal or finish)[:200]}"}
        if finish == "length" and (fault := self.read_cut(text)):
            return row | {"fault": fault}
        return row

    def expected_tokens(self, request: Request) -> tuple[int, int]:
        """Tokens to reserve for a request that is about to be sent."""
        return math.ceil(len(request.text.encode()) / BYTES_PER_TOKEN), self.sampling.max_new_tokens


def _client(endpoint: EndpointConfig, asking: AskingConfig, needed_by: str, extra: str) -> Any:
    try:
        import openai
    except ModuleNotFoundError:
        raise MachineError(
            f"{needed_by} by endpoint needs the package openai: pip install 'tiebreak[{extra}]'"
        ) from None
    variable = endpoint.key_variable
    key = os.environ.get(variable, "") if variable else ""
    local = urlsplit(endpoint.url).hostname in LOOPBACK
    if variable and not key and not local:
        raise ConfigError(
            f"endpoint: no key: set the environment variable {variable}, or name another one with endpoint.key_variable "
            "(null: the endpoint takes no key)"
        )
    return openai.OpenAI(api_key=key or "none", base_url=endpoint.url, timeout=asking.timeout_seconds, max_retries=0)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


# --- answers on disk ---


class AnswerFile:
    """The answers of a run, one JSON object a line. A line that a kill cut short is removed at the next start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        whole = self._read()
        if path.exists() and whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)

    def _read(self) -> int:
        """Read every complete line; returns their length in bytes."""
        whole = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        break
                    if not line.endswith(b"\n"):
                        break
                    self.rows[row["key"]] = row
                    whole += len(line)
        return whole

    def add(self, key: str, row: dict[str, Any]) -> None:
        """On return, the answer is on disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps({"key": key, **row}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row

    def spent(self) -> tuple[int, int]:
        """Prompt and completion tokens of all answers."""
        rows = self.rows.values()
        return sum(row["prompt_tokens"] for row in rows), sum(row["completion_tokens"] for row in rows)


# --- asking ---


@dataclass
class _Pace:
    """The earliest time of the next request, for all threads."""

    interval: float
    at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> float:
        """Seconds to wait before the next request."""
        with self.lock:
            now = time.monotonic()
            start = max(now, self.at)
            self.at = start + self.interval
            return start - now

    def hold(self, seconds: float) -> None:
        """Let no thread send a request for this long, as the endpoint asked."""
        with self.lock:
            self.at = max(self.at, time.monotonic() + seconds)


class _RequestPool:
    """Asks all questions that have no answer. The main thread writes; the others only wait for the network."""

    def __init__(self, endpoint: Endpoint, store: AnswerFile, waiting: dict[str, Request], advance: Any) -> None:
        self.endpoint, self.store, self.waiting, self.advance = endpoint, store, waiting, advance
        rate = endpoint.asking.requests_per_minute
        self.pace = _Pace(60 / rate if rate else 0.0)
        self.ended = threading.Event()
        self.faults: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Questions without an answer after all tries, with the reasons."""
        reserved: dict[Future[dict[str, Any]], tuple[str, tuple[int, int]]] = {}
        left = list(self.waiting.items())[::-1]
        limit = ""
        with ThreadPoolExecutor(self.endpoint.asking.parallel) as pool:
            try:
                while left or reserved:
                    while left and not limit and len(reserved) < self.endpoint.asking.parallel:
                        key, request = left[-1]
                        expected = self.endpoint.expected_tokens(request)
                        if self._exceeds([expected, *(tokens for _, tokens in reserved.values())]):
                            if reserved:  # those on their way may cost less than was reserved
                                break
                            limit = self._limit()
                            break
                        left.pop()
                        reserved[pool.submit(self._try, request)] = key, expected
                    if limit:
                        break
                    self._collect(reserved)
                    check(f"{len(self.store.rows)} answers are kept")
            finally:
                self.ended.set()
                self._keep(reserved)
        if limit:
            raise RunError(self._stopped(limit, len(left)))
        return self.faults

    def _collect(self, reserved: dict[Future[dict[str, Any]], tuple[str, tuple[int, int]]]) -> None:
        done, _ = wait(reserved, POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            key, _ = reserved.pop(future)
            self._take(key, future)

    def _take(self, key: str, future: Future[dict[str, Any]]) -> None:
        try:
            self.store.add(key, future.result())
        except TransientError as error:
            self.faults[key] = str(error)
        self.advance(1)

    def _keep(self, reserved: dict[Future[dict[str, Any]], tuple[str, tuple[int, int]]]) -> None:
        """Requests on their way are paid for: wait for their answers and keep them, even if the run ends with an
        error."""
        for future, (key, _) in reserved.items():
            try:
                self.store.add(key, future.result())
            except (TransientError, ConfigError):
                continue

    def _try(self, request: Request) -> dict[str, Any]:
        tries = self.endpoint.asking.retries + 1
        chance = random.Random(request.key)
        for number in range(tries):
            self._sleep(self.pace.take())
            try:
                return self.endpoint.complete(request)
            except TransientError as error:
                if number + 1 == tries or self.ended.is_set():
                    raise TransientError(f"{error}, after {number + 1} tries") from error
                if error.wait_seconds is not None:
                    self.pace.hold(min(error.wait_seconds, self.endpoint.asking.longest_wait_seconds))
                backoff = min(2.0**number * (0.5 + chance.random() / 2), self.endpoint.asking.longest_wait_seconds)
                self._sleep(backoff if error.wait_seconds is None else 0.0)
        raise AssertionError

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.ended.wait(seconds)
        if self.ended.is_set():
            raise TransientError("the run was stopped")

    def _exceeds(self, expected: Sequence[tuple[int, int]]) -> bool:
        """Whether answers on their way and the next one may cost more than is left."""
        prompt, completion = (
            spent + sum(tokens[n] for tokens in expected) for n, spent in enumerate(self.store.spent())
        )
        asking, cost = self.endpoint.asking, self.endpoint.endpoint.cost_of(prompt, completion)
        over_tokens = asking.max_tokens is not None and prompt + completion > asking.max_tokens
        return over_tokens or (asking.max_cost is not None and cost is not None and cost > asking.max_cost)

    def _limit(self) -> str:
        asking, (prompt, completion) = self.endpoint.asking, self.store.spent()
        cost = self.endpoint.endpoint.cost_of(prompt, completion)
        if asking.max_cost is not None and cost is not None:
            return f"asking.max_cost ({asking.max_cost:g}): {cost:.4g} spent on {prompt + completion:,} tokens"
        return f"asking.max_tokens ({asking.max_tokens:,}): {prompt + completion:,} tokens spent"

    def _stopped(self, limit: str, left: int) -> str:
        return (
            f"stopped before {limit}; {len(self.store.rows)} answers are kept, {counted(left, 'question')} left. Raise the "
            f"limit and run the same command again{self.endpoint.advice}"
        )
