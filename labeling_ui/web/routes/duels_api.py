"""What models say of the campaign, for the leads, under /api/lead/.

GET  duels      each comparison of two policies, and whether its judgments decide it yet
GET  pulls      judgments that pull against the rest, by reports of reward models
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from labeling_ui.quality.duels import LiveDuels
from labeling_ui.quality.pulls import LivePulls
from labeling_ui.web.context import viewing_session
from labeling_ui.web.lead_replies import DuelSoFar, PullsFound
from labeling_ui.web.replies import replies

router = APIRouter(prefix="/api/lead", dependencies=[Depends(viewing_session)])


@router.get("/duels", **replies(list[DuelSoFar]))
def duels(request: Request) -> list[dict[str, Any]]:
    """Each comparison: `state` is first or second (is better), no difference (above `most`), or undecided (about `more`
    pairs are missing)."""
    live: LiveDuels = request.app.state.duels
    return live()


@router.get("/pulls", **replies(list[PullsFound]))
def pulls(request: Request) -> list[dict[str, Any]]:
    """Each report: the pairs from which learning raised the others' loss most, with the raters who prefer their chosen
    answer, and each rater's share of such pairs."""
    live: LivePulls = request.app.state.pulls
    return live()
