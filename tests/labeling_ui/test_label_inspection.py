"""Lots of answers that are inspected by a sample: the plan's error rates, and what becomes of a lot."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_label_single import export_of, make_single, rows_of

from labeling_ui.configuration import LabelConfig
from labeling_ui.database.errors import StoreError
from labeling_ui.label import read_some_answers
from labeling_ui.store.answers import Submission
from labeling_ui.store.leads.rejecting import Selection
from labeling_ui.store.pairs.campaign import Batch
from labeling_ui.store.pairs.inspection import InspectConfig, chance_of_at_most, plan_sample
from labeling_ui.store.store import Store
from labeling_ui.store.verify import verify
from labeling_ui.web.context import as_json
from tiebreak.data.reading import read_demonstrations, read_records
from tiebreak.data.single import flagged_rows
from tiebreak.data.synthetic import check_reviewed
from tiebreak.errors import HandoffError
from tiebreak.files import write_jsonl
from tiebreak.messages import Message, prompt_id
from tiebreak.records import Demonstration, Prompt


@pytest.mark.parametrize(("most", "n", "share"), [(0, 10, 0.1), (3, 52, 0.02), (7, 200, 0.1), (52, 52, 0.3)])
def test_the_binomial_is_that_of_the_definition(most: int, n: int, share: float) -> None:
    exact = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(most + 1))
    assert chance_of_at_most(most, n, share) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        InspectConfig(share=0.001),
        InspectConfig(share=0.001, acceptable=0.01, rejectable=0.08, alpha=0.05, beta=0.1),
        InspectConfig(share=0.001, acceptable=0.05, rejectable=0.2, alpha=0.01, beta=0.01),
    ],
)
def test_a_plan_keeps_its_error_rates_and_is_the_smallest(config: InspectConfig) -> None:
    """By simulated lots of 20,000, and by trying every smaller plan."""
    lot, chance = 20_000, np.random.default_rng(0)
    n, most = plan_sample(config, lot)
    defects = {
        share: chance.hypergeometric(int(share * lot), int((1 - share) * lot), n, 40_000)
        for share in (config.acceptable, config.rejectable)
    }
    assert np.mean(defects[config.acceptable] > most) <= config.alpha + 0.004
    assert np.mean(defects[config.rejectable] <= most) <= config.beta + 0.004

    def works(size: int, allowed: int) -> bool:
        passes = [
            sum(comb(size, k) * share**k * (1 - share) ** (size - k) for k in range(allowed + 1))
            for share in (config.acceptable, config.rejectable)
        ]
        return passes[0] >= 1 - config.alpha and passes[1] <= config.beta

    assert works(n, most)
    assert not any(works(size, allowed) for size in range(20, n) for allowed in range(most + 1))


def test_a_share_is_the_least_that_is_reviewed_and_a_small_lot_is_reviewed_whole() -> None:
    assert plan_sample(InspectConfig(share=0.1), 10_000)[0] >= 1_000
    assert plan_sample(InspectConfig(share=0.1), 20) == (20, 0)


LOOSE = InspectConfig(share=0.1, acceptable=0.05, rejectable=0.5, alpha=0.1, beta=0.1)


def begin(url: str, lot: int) -> tuple[Store, int, int]:
    store = Store.open(url, create=True)
    store.add_rater("rater 0", rater_id="r0")
    answers = [make_single(n, "review", f"text {n}") for n in range(lot)]
    assert store.add_lot(answers, Batch("lot"), LOOSE, seed=0, source="s", source_id="s") == lot
    [inspection] = store.inspections().values()
    return store, inspection["sample"], inspection["most_defects"]


def review(store: Store, verdicts: list[str]) -> list[str]:
    judged = []
    for n, verdict in enumerate(verdicts):
        given = store.claim("r0")
        assert given is not None
        fields = {"edited_text": "better"} if verdict == "edit" else {"rationale": "wrong"}
        store.submit("r0", Submission(client_id=f"{given.item_id} {n}", pair_id=given.item_id, value=verdict, **fields))  # type: ignore[arg-type]
        judged.append(given.item_id)
    return judged


def test_a_good_sample_accepts_the_lot(url: str, tmp_path: Path) -> None:
    store, sample, most = begin(url, 40)
    assert 1 <= most < sample < 20
    seen = review(store, ["reject"] * most + ["accept"] * (sample - most))
    assert store.claim("r0") is None, "nobody is asked about the rest"
    [inspection] = store.inspections().values()
    assert (inspection["passed"], inspection["defects"]) == (True, most)
    assert store.status()["judgments_wanted"] == sample, "and it is not missing"
    assert verify(store).faults == []
    final = export_of(store, tmp_path / "out")
    rows = rows_of(final / "reviews.jsonl")
    unseen = [row for row in rows if "lot" in row]
    assert len(rows) == 40
    assert len(unseen) == 40 - sample
    assert {(row["verdict"], row["lot"], row["kind"], len(row["raters"])) for row in unseen} == {
        ("accept", "lot", "unstated", 0)
    }
    assert not {row["answer_id"] for row in unseen} & set(seen)
    made = read_demonstrations(str(tmp_path / "out"))
    tags = [one.prompt.tags[-1] for one in made]
    assert (tags.count("reviewed:by_sample"), tags.count("reviewed:accepted")) == (40 - sample, sample - most)
    report = json.loads((final / "report.json").read_text())["single_answers"]["review"]
    assert report["outcomes"] == {"accept": sample - most, "accept by sample": 40 - sample, "reject": most}


def test_a_bad_sample_is_noticed_at_once_and_all_are_reviewed(url: str) -> None:
    store, _, most = begin(url, 40)
    review(store, ["edit"] * most)
    assert next(iter(store.inspections().values()))["passed"] is None
    review(store, ["reject"])
    [inspection] = store.inspections().values()
    assert (inspection["passed"], inspection["inspected"]) == (False, most + 1)
    review(store, ["accept"] * (40 - most - 1))
    assert store.claim("r0") is None
    assert store.status()["judgments_wanted"] == store.judged() == 40
    assert verify(store).faults == []
    with pytest.raises(StoreError, match="a lot needs a new batch"):
        store.add_lot([make_single(99, "review")], Batch("lot"), LOOSE, seed=0, source="s", source_id="t")
    assert (
        store.add_lot([make_single(3, "review", "text 3")], Batch("lot"), LOOSE, seed=0, source="s", source_id="t") == 0
    )
    with pytest.raises(StoreError, match="only answers to review"):
        store.add_lot([make_single(100, "rate")], Batch("other"), LOOSE, seed=0, source="s", source_id="t")


def test_flagged_rows_are_reviewed_and_the_others_are_kept_without_a_review(url: str, tmp_path: Path) -> None:
    """Five rows, two flagged. A synthetic one that was not flagged is not reviewed by that: training refuses it."""
    store = Store.open(url, create=True)
    store.add_rater("rater 0", rater_id="r0")
    reasons = {1: ["anonymise: may hold PHONE"], 3: ["perplexity: is high", "quality: filler"]}
    answers = [
        make_single(n, "review", f"text {n}", tags=("synthetic",) if n == 4 else (),
                    origin={"flagged": reasons[n]} if n in reasons else {})
        for n in range(5)
    ]  # fmt: skip
    assert store.add_lot(answers, Batch("flagged"), None, seed=0, source="s", source_id="s") == 5
    given = store.claim("r0")
    assert given is not None
    assert as_json(given)["flagged"] == reasons[int(given.pair.id.partition("-")[2])]
    assert store.accepted_unseen() == {}, "not before all flagged rows are reviewed"
    seen = review(store, ["reject", "accept"])
    assert store.claim("r0") is None
    assert len(seen) == 2
    [inspection] = store.inspections().values()
    assert (inspection["passed"], inspection["inspected"], inspection["defects"]) == (True, 2, 1)
    assert store.status()["judgments_wanted"] == 2
    assert verify(store).faults == []
    final = export_of(store, tmp_path / "out")
    report = json.loads((final / "report.json").read_text())["single_answers"]["review"]
    assert report["outcomes"] == {"accept": 1, "not flagged": 3, "reject": 1}
    kept = read_records(final / "demonstrations.jsonl", Demonstration)
    assert sorted(one.prompt.tags for one in kept) == [(), (), ("reviewed:accepted",), ("synthetic",)]
    with pytest.raises(HandoffError, match="1 of 4 rows synthetic, and reviewed by nobody"):
        check_reviewed(kept, "out", None)


def test_a_column_named_flagged_is_not_shown_to_raters(url: str) -> None:
    store = Store.open(url, create=True)
    store.add_rater("rater 0", rater_id="r0")
    singles = [
        make_single(0, "rate", "a", origin={"flagged": ["by model x"]}),
        make_single(1, "review", origin={"flagged": 1}),
    ]
    store.add_pairs(singles, overlap=1, seed=0, source="s", source_id="s")
    for _ in singles:
        given = store.claim("r0")
        assert given is not None
        assert as_json(given)["flagged"] == []
        store.submit("r0", Submission(client_id=given.item_id, pair_id=given.item_id, skip=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pairs": "p.jsonl"}, "flagged: applies to the rows of a prepare run: set answers"),
        ({"answers": "runs/x", "inspect": True, "batch": "b"}, "leave out inspect"),
        ({"answers": "runs/x", "task": "rate"}, "any other task"),
    ],
)
def test_what_does_not_go_with_flagged_rows(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelConfig(output="out", flagged=True, **values)


def test_a_run_without_flagged_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HandoffError, match="has no flagged rows: give the folder of a prepare run with steps"):
        flagged_rows(str(tmp_path))


@pytest.mark.parametrize("flagged", [[0, 2], [2]])
def test_flagged_prompts_without_an_answer_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flagged: list[int]
) -> None:
    """Two demonstrations and a bare prompt (2). Reviewers judge answers: the bare prompt is in no batch."""
    (tmp_path / "final").mkdir()
    asked = [(Message(role="user", content=f"{n}?"),) for n in range(3)]
    prompts = [Prompt(id=prompt_id(messages), messages=messages) for messages in asked]
    write_jsonl(
        tmp_path / "final" / "demonstrations.jsonl", [Demonstration(prompt=p, completion="a") for p in prompts[:2]]
    )
    lines = [{"step": "quality", "reason": "r", "prompt_ids": [prompts[n].id]} for n in flagged]
    write_jsonl(tmp_path / "final" / "flagged.jsonl", lines)
    (tmp_path / "manifest.json").write_text(json.dumps({"id": "x", "stage": "prepare", "inputs": {}, "config": {}}))
    config = LabelConfig(output="out", answers=str(tmp_path), flagged=True)
    message = (
        f"1 flagged prompt without an answer: reviewers judge answers, so check these in {tmp_path}/final/flagged.jsonl"
    )
    if flagged == [2]:
        with pytest.raises(HandoffError, match=f"there is nothing to review; {message}"):
            read_some_answers(config)
    else:
        assert len(read_some_answers(config)) == 2
        assert message in capsys.readouterr().out


def test_a_lot_needs_a_name() -> None:
    with pytest.raises(ValueError, match="set answers and batch"):
        LabelConfig(output="out", answers="rows.jsonl", inspect=True)  # type: ignore[arg-type]
    assert LabelConfig(output="out", answers="rows.jsonl", inspect=True, batch="lot").inspect == InspectConfig()  # type: ignore[arg-type]


def test_a_settled_answer_counts_as_the_lead_decided(url: str) -> None:
    """The last answer of the sample is one defect too many; the lead had settled an earlier defect as none."""
    store, sample, most = begin(url, 40)
    store.add_rater("lead", role="lead", rater_id="lead")
    seen = review(store, ["reject"] * most)
    store.adjudicate("lead", Submission(client_id="x", pair_id=seen[0], value="accept"))
    [inspection] = store.inspections().values()
    assert (inspection["inspected"], inspection["defects"]) == (most, most - 1)
    review(store, ["accept"] * (sample - most - 1) + ["reject"])
    [inspection] = store.inspections().values()
    assert (inspection["passed"], inspection["defects"]) == (True, most)
    assert verify(store).faults == []


def outcome_of(store: Store) -> tuple[bool | None, int]:
    """(whether the lot has passed, how many of its answers are accepted unseen)."""
    [inspection] = store.inspections().values()
    assert verify(store).faults == []
    return inspection["passed"], len(store.accepted_unseen())


def test_a_lot_that_passed_is_looked_at_again_when_its_sample_changes(url: str) -> None:
    """The reviewer undoes her last verdict; says reject, one defect too many: all of the lot is reviewed."""
    store, sample, most = begin(url, 40)
    seen = review(store, ["reject"] * most + ["accept"] * (sample - most))
    assert outcome_of(store) == (True, 40 - sample)
    store.undo("r0", store.history("r0")[0].judgment_id)
    assert outcome_of(store) == (None, 0)
    store.submit("r0", Submission(client_id="again", pair_id=seen[-1], value="reject", rationale="wrong"))
    assert outcome_of(store) == (False, 0)
    assert store.claim("r0") is not None


def test_a_lot_that_passed_by_a_rejected_rater_waits_for_another(url: str) -> None:
    store, sample, _ = begin(url, 40)
    seen = review(store, ["accept"] * sample)
    ids = [one.judgment_id for one in store.history("r0", limit=100)]
    assert len(seen) == len(ids) == store.reject(Selection(rater_id="r0"), "clicked through")
    assert outcome_of(store) == (None, 0)
    store.take_back_rejections(ids)
    assert outcome_of(store) == (True, 40 - sample)


def test_a_lot_passes_when_the_last_answer_to_review_is_withdrawn(url: str) -> None:
    """Nobody will judge it: the rest of the lot would wait for ever."""
    store, sample, _ = begin(url, 40)
    review(store, ["accept"] * (sample - 1))
    last = store.claim("r0")
    assert last is not None
    assert outcome_of(store) == (None, 0)
    store.withdraw_pairs([last.pair.id], reason="in another language")
    assert outcome_of(store) == (True, 40 - sample)
    store.restore_pairs([last.pair.id])
    assert outcome_of(store) == (None, 0)


def test_an_export_without_a_rater_has_no_lot_that_passed_by_theirs(url: str) -> None:
    store, sample, _ = begin(url, 40)
    review(store, ["accept"] * sample)
    assert len(store.accepted_unseen(without=["r1"])) == 40 - sample
    assert store.accepted_unseen(without=["r0"]) == {}
