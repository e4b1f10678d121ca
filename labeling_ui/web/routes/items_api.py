"""The leads' search and the rejection of judgments, under /api/lead/.

GET  items                              items by text, id, batch, rater, flag, answer, agreement, state and length
GET  items/{pair_id}                    an item with all its judgments and its history
GET  raters/{rater_id}/judgments        a rater's judgments, rejected ones too, latest first
POST rejections/preview, rejections     what rejecting judgments would do; rejects them; rejections/take-back
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from labeling_ui.pages.media_markup import render_answer, render_message
from labeling_ui.store.answers import storable
from labeling_ui.store.leads.finding import JudgmentEntry, Search
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.media import media_of
from labeling_ui.web.context import DeskOf, LeadWritingSession, viewing_session
from labeling_ui.web.lead_replies import ItemRead, ItemsFound, JudgmentListed, Rejected, RejectionEffect, TakenBack
from labeling_ui.web.refusals import printable
from labeling_ui.web.replies import replies
from tiebreak.files import explain

router = APIRouter(prefix="/api/lead", dependencies=[Depends(viewing_session)])


class Page(BaseModel):
    """Which page of a search, beside the fields of `Search`."""

    model_config = ConfigDict(extra="allow")

    after: int = Field(default=-1, ge=-1, le=2**31 - 1)
    limit: int = Field(default=50, ge=1, le=200)


class Reject(BaseModel):
    """Judgments to reject, and why."""

    model_config = ConfigDict(extra="forbid")

    selection: Selection
    reason: str = Field(min_length=1, max_length=1_000)
    again: bool = False
    """the same raters get the pairs again, unless others are faster"""

    @field_validator("reason")
    @classmethod
    def _said(cls, reason: str) -> str:
        if not (said := (storable(reason) or "").strip()):
            raise ValueError("say why: the rater reads it")
        return said


class TakeBack(BaseModel):
    """Rejected judgments that are to count again."""

    model_config = ConfigDict(extra="forbid")

    judgment_ids: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(min_length=1, max_length=500)

    @field_validator("judgment_ids")
    @classmethod
    def _storable_ids(cls, names: list[str]) -> list[str]:
        return [storable(name) or "" for name in names]


def _search_parameters() -> list[dict[str, Any]]:
    """The fields of `Search` as the API describes them: an empty one is as if it were not there, except the batch's."""
    fields = Search.model_json_schema()["properties"]
    return [{"name": name, "in": "query", "required": False, "schema": about} for name, about in fields.items()]


@router.get("/items", **replies(ItemsFound), openapi_extra={"parameters": _search_parameters()})
def items(desk: DeskOf, page: Annotated[Page, Query()]) -> dict[str, Any]:
    """A page of the items that a search is for, in campaign order. `after`: where the next page begins; null: the end."""
    try:
        fields = page.model_extra or {}
        search = Search.model_validate({name: fields[name] for name in fields if fields[name] != "" or name == "batch"})
    except ValidationError as error:
        raise HTTPException(422, [printable(fault) for fault in explain(error)]) from error
    return asdict(desk.store.find(search, after=page.after, limit=page.limit))


@router.get("/items/{pair_id:path}", **replies(ItemRead))
def item(desk: DeskOf, pair_id: str) -> dict[str, Any]:
    """An item: its texts, its judgments, rejected ones too, and its history."""
    opened = desk.store.open_item(pair_id)
    with desk.store.reading() as connection:
        media = media_of(connection, opened.pair)
    compared = opened.item.task == "pair"
    return {
        **asdict(opened.item),
        "messages": [{"role": one.role, "html": render_message(one, media)} for one in opened.pair.messages],
        "completions": [
            {"id": one.id, "text": one.text, "html": render_answer(one, media)}
            for one in sorted(opened.pair.completions, key=lambda one: one.id != opened.first_id)
            if not compared or one.id in (opened.first_id, opened.second_id)
        ],
        "gold_id": opened.gold_id,
        "gold_value": opened.gold_value,
        "settled_as": opened.settled and opened.settled.model_dump(mode="json"),
        "withdrawn_why": opened.withdrawn,
        "pair": opened.pair.model_dump(mode="json"),
        "judgments": [_as_json(one) for one in opened.judgments],
        "history": [
            {**vars(one), "judgment": one.judgment and one.judgment.model_dump(mode="json")} for one in opened.history
        ],
    }


@router.get("/raters/{rater_id}/judgments", **replies(list[JudgmentListed]))
def judgments_of_rater(
    desk: DeskOf,
    rater_id: str,
    before: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[dict[str, Any]]:
    """A rater's judgments, rejected ones too, latest first; `before`: the `seq` of the last one that the client has."""
    return [_as_json(one) for one in desk.store.judgments_of_rater(rater_id, before=before, limit=limit)]


@router.post("/rejections/preview", **replies(RejectionEffect))
def preview_rejection(desk: DeskOf, _lead: LeadWritingSession, body: Selection) -> dict[str, Any]:
    """What rejecting these judgments would do."""
    return vars(desk.store.preview_rejection(body))


@router.post("/rejections", **replies(Rejected))
def reject(desk: DeskOf, lead: LeadWritingSession, body: Reject) -> dict[str, int]:
    """Reject judgments: they count nowhere, their places are free, and their pairs are given out again."""
    return {"rejected": desk.store.reject(body.selection, body.reason, lead.rater.id, again=body.again)}


@router.post("/rejections/take-back", **replies(TakenBack))
def take_back(desk: DeskOf, lead: LeadWritingSession, body: TakeBack) -> dict[str, int]:
    """Take rejections back: the judgments count again. `stay`: those whose raters have judged the pair again since."""
    done, stay = desk.store.take_back_rejections(body.judgment_ids, lead.rater.id)
    return {"taken_back": done, "stay": stay}


def _as_json(given: JudgmentEntry) -> dict[str, Any]:
    return {**vars(given), "judgment": given.judgment.model_dump(mode="json")}
