"""TensorBoard: event files in the run folder's `trackers/tensorboard/`. `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tiebreak.tracking.trackers import Point, Result, flat_config

_CELL = 400
"""characters of a table's cell"""


class TensorBoardFiles:
    """A run as event files. They are written anew each time, from all rows."""

    place = ""

    def begin(self, folder: Path, facts: Mapping[str, Any]) -> int:
        """Replace the files of an interrupted stage."""
        own = folder / "trackers" / "tensorboard"
        self.place = f"tensorboard --logdir {shlex.quote(str(folder.parent))}"
        shutil.rmtree(own, ignore_errors=True)
        self._writer = EventFileWriter(str(own))
        self._last_step = 0
        config = flat_config(facts["config"])
        start = SessionStartInfo(start_time_secs=time.time())
        for key, value in config.items():
            start.hparams[key].string_value = value
        self._session(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))
        self._text("config", _as_table(["key", "value"], sorted(config.items())))
        about = {key: facts.get(key) for key in ("name", "group", "tags", "notes") if facts.get(key)}
        self._text("run", _as_table(["", ""], [[key, json.dumps(value)] for key, value in about.items()]))
        return 0

    def log(self, points: Sequence[Point]) -> None:
        """One scalar a figure."""
        for point in points:
            self._last_step = point.step
            self._add(Summary(value=[_scalar(tag, value) for tag, value in point.values.items()]), point.step)
        self._writer.flush()

    def alert(self, title: str, text: str) -> None:
        """A text."""
        self._text("alert", f"**{title}**: {text}")

    def finish(self, result: Result | None) -> None:
        """Final figures as scalars of the last step; tables as texts."""
        if result:
            numbers = {key: value for key, value in result.figures.items() if not isinstance(value, str)}
            self._add(Summary(value=[_scalar(f"final/{key}", float(value)) for key, value in numbers.items()]))
            texts = [[key, value] for key, value in result.figures.items() if isinstance(value, str)]
            self._text("final", _as_table(["key", "value"], texts))
            for name, (columns, rows) in result.tables.items():
                self._text(f"tables/{name}", _as_table(columns, rows))
        status = Status.Value("STATUS_SUCCESS" if result else "STATUS_FAILURE")
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._session(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))
        self._writer.close()

    def _add(self, summary: Summary, step: int | None = None) -> None:
        step = self._last_step if step is None else step
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def _session(self, tag: str, data: HParamsPluginData) -> None:
        """Start or end of the run, in the form of TensorBoard's table of hyperparameters, whose own function needs
        TensorFlow."""
        described = metadata.create_summary_metadata(data)
        self._add(Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)]))

    def _text(self, tag: str, markdown: str) -> None:
        """A text, in the form of TensorBoard's plugin of that name."""
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode()], tensor_shape=shape)
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        self._add(Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)]))


def _scalar(tag: str, value: float) -> Summary.Value:
    return Summary.Value(tag=tag, simple_value=value)


def _as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [list(map(str, columns)), ["---"] * len(columns), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return " ".join(text[:_CELL].split()).replace("|", "\\|")
