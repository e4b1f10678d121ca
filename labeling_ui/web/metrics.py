"""Figures of the running server, as Prometheus reads them, for those who watch over it.

    TIEBREAK_METRICS_TOKEN=… tiebreak label --config FILE      then GET /metrics with `Authorization: Bearer …`

Without the variable there is no such page, since raters must not see it.
"""

from __future__ import annotations

import hmac
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

TOKEN = "TIEBREAK_METRICS_TOKEN"
BUCKETS_SECONDS = (0.005, 0.02, 0.08, 0.4, 2.0)


class Metrics:
    """Requests of one server process, counted. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._statuses: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0
        self._begun = time.time()

    def count(self, method: str, status: int, seconds: float) -> None:
        """Count a request, when its reply begins."""
        with self._lock:
            self._statuses[method, status] += 1
            self._seconds += seconds
            self._buckets.update([edge for edge in BUCKETS_SECONDS if seconds <= edge])

    def lines(self, status: Mapping[str, Any] | None) -> Iterator[str]:
        """The figures in Prometheus's text format 0.0.4. `status`: the store's; None where it does not answer."""
        with self._lock:
            statuses, buckets, seconds = dict(self._statuses), dict(self._buckets), self._seconds
        requests = sum(statuses.values())
        yield "# TYPE tiebreak_requests_total counter"
        for (method, code), count in sorted(statuses.items()):
            yield f'tiebreak_requests_total{{method="{method}",status="{code}"}} {count}'
        yield "# TYPE tiebreak_request_seconds histogram"
        yield from (
            f'tiebreak_request_seconds_bucket{{le="{edge}"}} {buckets.get(edge, 0)}' for edge in BUCKETS_SECONDS
        )
        yield f'tiebreak_request_seconds_bucket{{le="+Inf"}} {requests}'
        yield f"tiebreak_request_seconds_sum {seconds:.6f}"
        yield f"tiebreak_request_seconds_count {requests}"
        gauges: dict[str, float] = {"start_time_seconds": self._begun, "store_up": int(status is not None)}
        if status is not None:
            beside = sum(status["judgments"].values()) - status["judged"]
            gauges |= {
                "judgments": status["judged"],
                "judgments_by_judges": beside,
                "judgments_wanted": status["judgments_wanted"],
            }
            gauges |= {name: status[name] for name in ("pairs", "raters", "skipped", "disputed", "withdrawn", "events")}
        for name, value in gauges.items():
            yield f"# TYPE tiebreak_{name} gauge"
            yield f"tiebreak_{name} {value}"


def may_read(authorization: str) -> bool | None:
    """Whether a request has the token; None if no token is configured."""
    token = os.environ.get(TOKEN, "")
    if not token:
        return None
    return hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())
