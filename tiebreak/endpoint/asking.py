"""Asks a model behind an OpenAI-compatible API, in parallel, under a rate limit and a spend limit.

Every answer is appended to `answers.jsonl` in the run folder, and on disk, before it counts. A run that was killed asks
only what has no answer there; an answer on its way at that moment is the most that is paid twice. The key comes from the
environment and is written nowhere.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

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
WRONG_FOR_ALL = (401, 403, 404, 405)
"""statuses with which it refuses every question"""
UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
"""codes of status 400 with which it refuses a key of every question"""
LIMITS = ("max_tokens", "max_completion_tokens")
"""names of the longest answer: OpenAI's reasoning models refuse the first, and other endpoints may lack the second"""
NO_KEY = "none"
POLL_SECONDS = 0.2
MOST_BYTES = 16 * 1024**2
"""of a response, as it is sent: no answer is that long"""
FAILURES_IN_A_ROW = 16
"""questions that end without an answer, and none with one in between: then the endpoint is down, and the others would wait
for nothing. At least two rounds of `asking.parallel`"""


class TransientError(Exception):
    """A failure that another try may not have."""

    def __init__(self, why: str, wait_seconds: float | None = None) -> None:
        super().__init__(why)
        self.wait_seconds = wait_seconds
        """as the endpoint asked; None or 0: not at all"""


class BoundError(Exception):
    """A response is too large, or does not end."""


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
        except BoundError as error:
            raise TransientError(str(error)) from error
        except (openai.APIError, ValueError, RecursionError) as error:  # no connection, too slow, no JSON
            raise TransientError(f"{type(error).__name__}: {self._quoted(error)}") from error
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
            f"({self._quoted(error.message)}): set sampling to what it takes; many reasoning models take temperature 1 only"
        ) from None

    def _quoted(self, said: object) -> str:
        """The beginning of what the endpoint said, without the key, which some repeat."""
        key = self.client.api_key
        return " ".join((str(said) if key == NO_KEY else str(said).replace(key, "…")).split())[:120]

    def _refused(self, error: Any) -> dict[str, Any]:
        status = int(error.status_code)
        if 300 <= status < 400:
            place = urlsplit(urljoin(self.endpoint.url, error.response.headers.get("location", "")))
            raise ConfigError(
                f"endpoint: {self.endpoint.url} redirects to {place.scheme}://{place.netloc}{place.path} "
                f"(status {status}), and texts are sent to endpoint.url alone: set it to the address that is meant"
            ) from None
        if status in WRONG_FOR_ALL:
            absent = status in (404, 405)
            why = "has no such model or path" if absent else f"refuses the key in {self.endpoint.key_variable}"
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
            raise TransientError(self._why_no_answer(answer))
        message, finish = choices[0].message, getattr(choices[0], "finish_reason", None)
        content = getattr(message, "content", None)
        text = _storable(content) if isinstance(content, str) else ""
        usage = getattr(answer, "usage", None)
        row = {
            "text": text,
            "prompt_tokens": _tokens(getattr(usage, "prompt_tokens", None), prompt),
            "completion_tokens": _tokens(getattr(usage, "completion_tokens", None), text),
        }
        refusal = getattr(message, "refusal", None)
        if refusal or finish == "content_filter":
            return row | {"fault": f"a refusal: {_storable(str(refusal or finish))[:200]}"}
        if finish == "length" and (fault := self.read_cut(text)):
            return row | {"fault": fault}
        return row

    def _why_no_answer(self, answer: Any) -> str:
        """What came in the place of a response with choices."""
        if isinstance(answer, str):
            return "a page or a text in the place of JSON: is endpoint.url the API's base URL, such as https://host/v1?"
        if error := getattr(answer, "error", None):
            said = error.get("message", error) if isinstance(error, dict) else error
            return f"a response without choices: {self._quoted(said)}"
        return "a response without choices"

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
    http = openai.DefaultHttpxClient(
        follow_redirects=False, event_hooks={"response": [lambda response: _bound(response, asking.timeout_seconds)]}
    )
    return openai.OpenAI(
        api_key=key or NO_KEY,
        base_url=endpoint.url,
        timeout=asking.timeout_seconds,
        max_retries=0,
        http_client=http,
    )


def _bound(response: Any, seconds: float) -> None:
    """Let a response end with an error if it does not end by itself: the client's own limit is of one read, not of all.

    Args:
        seconds: from its headers to its end.
    """
    package = type(response).__module__.partition(".")[0]
    base: Any = importlib.import_module(package).SyncByteStream
    stream, end = response.stream, time.monotonic() + seconds

    class Bounded(base):
        def __iter__(self) -> Iterator[bytes]:
            size = 0
            for block in stream:
                size += len(block)
                if size > MOST_BYTES:
                    raise BoundError(f"a response of more than {MOST_BYTES // 1024**2} MB")
                if time.monotonic() > end:
                    raise BoundError(f"a response that did not end within {seconds:g} seconds (asking.timeout_seconds)")
                yield block

        def close(self) -> None:
            stream.close()

    response.stream = Bounded()


def _storable(text: str) -> str:
    """A text that can be written as UTF-8: JSON may escape half a character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(counted: object, text: str) -> int:
    """Tokens of a text as the endpoint counted them; estimated where it did not, or counted none of some."""
    if isinstance(counted, int) and (counted > 0 or not text):
        return max(counted, 0)
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


# --- answers on disk ---


class AnswerFile:
    """The answers of a run, one JSON object a line. A line that a kill cut short is removed at the next start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self.spent = (0, 0)
        """prompt and completion tokens of all answers"""
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
                    self._keep(row["key"], row)
                    whole += len(line)
        return whole

    def add(self, key: str, row: dict[str, Any]) -> None:
        """On return, the answer is on disk."""
        with self.path.open("ab") as file:
            file.write(json.dumps({"key": key, **row}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(key, row)

    def take_over(self, path: Path) -> None:
        """Add the answers of another file that are not here. On return, they are on disk."""
        new = {key: row for key, row in AnswerFile(path).rows.items() if key not in self.rows}
        with self.path.open("ab") as file:
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in new.values())
            file.flush()
            os.fsync(file.fileno())
        for key, row in new.items():
            self._keep(key, row)

    def _keep(self, key: str, row: dict[str, Any]) -> None:
        self.rows[key] = row
        self.spent = self.spent[0] + row["prompt_tokens"], self.spent[1] + row["completion_tokens"]


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
        self.failures_in_a_row = 0

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
                    if limit or self._is_down:
                        break
                    self._collect(reserved)
                    check(f"{len(self.store.rows)} answers are kept")
            finally:
                self.ended.set()
                self._keep(reserved)
        if limit:
            raise RunError(self._stopped(limit, len(left)))
        if left:
            raise RunError(
                f"{self.endpoint.endpoint.url} answered none of {self.failures_in_a_row} questions in a row "
                f"({list(self.faults.values())[-1]}): the other {len(left)} were not asked. {len(self.store.rows)} answers "
                "are kept, and the same command asks the rest"
            )
        return self.faults

    @property
    def _is_down(self) -> bool:
        return self.failures_in_a_row >= max(FAILURES_IN_A_ROW, 2 * self.endpoint.asking.parallel)

    def _collect(self, reserved: dict[Future[dict[str, Any]], tuple[str, tuple[int, int]]]) -> None:
        done, _ = wait(reserved, POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            key, _ = reserved.pop(future)
            self._take(key, future)

    def _take(self, key: str, future: Future[dict[str, Any]]) -> None:
        try:
            self.store.add(key, future.result())
            self.failures_in_a_row = 0
        except TransientError as error:
            self.faults[key] = str(error)
            self.failures_in_a_row += 1
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
                self._sleep(0.0 if error.wait_seconds else backoff)
        raise AssertionError

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.ended.wait(seconds)
        if self.ended.is_set():
            raise TransientError("the run was stopped")

    def _exceeds(self, expected: Sequence[tuple[int, int]]) -> bool:
        """Whether answers on their way and the next one may cost more than is left."""
        prompt, completion = (spent + sum(tokens[n] for tokens in expected) for n, spent in enumerate(self.store.spent))
        asking, cost = self.endpoint.asking, self.endpoint.endpoint.cost_of(prompt, completion)
        over_tokens = asking.max_tokens is not None and prompt + completion > asking.max_tokens
        return over_tokens or (asking.max_cost is not None and cost is not None and cost > asking.max_cost)

    def _limit(self) -> str:
        asking, (prompt, completion) = self.endpoint.asking, self.store.spent
        cost = self.endpoint.endpoint.cost_of(prompt, completion)
        if asking.max_cost is not None and cost is not None:
            return f"asking.max_cost ({asking.max_cost:g}): {cost:.4g} spent on {prompt + completion:,} tokens"
        return f"asking.max_tokens ({asking.max_tokens:,}): {prompt + completion:,} tokens spent"

    def _stopped(self, limit: str, left: int) -> str:
        return (
            f"stopped before {limit}; {len(self.store.rows)} answers are kept, {counted(left, 'question')} left. Raise the "
            f"limit and run the same command again{self.endpoint.advice}"
        )
