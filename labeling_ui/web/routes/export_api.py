"""The leads' export from the page.

GET /api/lead/export            what has changed since the last export; null: there was none
GET /api/lead/export.zip        the files of `tiebreak label export`, as the campaign is configured
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Response

from labeling_ui.exchange.export import write_labels
from labeling_ui.web.context import Desk, DeskOf, LeadSession, ViewingSession
from labeling_ui.web.lead_replies import SinceLastExport
from labeling_ui.web.replies import replies

router = APIRouter(prefix="/api/lead")
NAME = "labels.zip"


@router.get("/export", **replies(SinceLastExport | None))
def since(desk: DeskOf, _viewer: ViewingSession) -> dict[str, Any] | None:
    """What has changed since the last export."""
    found = desk.store.since_export()
    return None if found is None else vars(found)


@router.get("/export.zip")
async def download(desk: DeskOf, _lead: LeadSession) -> Response:
    """Preferences, judgments and the report in one file."""
    content = await to_thread.run_sync(_pack, desk)
    headers = {"Content-Disposition": f'attachment; filename="{NAME}"'}
    return Response(content, media_type="application/zip", headers=headers)


def _pack(desk: Desk) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "labels"
        folder.mkdir()
        labels, _ = write_labels(desk.store, folder, desk.aggregation, ())
        packed = shutil.make_archive(str(Path(place) / "packed"), "zip", folder)
        desk.store.mark_export(labels.head, NAME)
        return Path(packed).read_bytes()
