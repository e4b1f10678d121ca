"""`require: anonymised`: what is behind the pairs must have been through the step, all of it, whatever adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from study import finished
from support import run_here, write_config, write_rows

from labeling_ui.configuration import LabelConfig
from labeling_ui.database.errors import RefusedError
from labeling_ui.label import read_some_pairs
from labeling_ui.store.pairs.campaign import Source, upload_pairs
from labeling_ui.store.store import Store
from sft.configuration import PrepareConfig
from sft.prepare import prepare
from tiebreak.data.pairs import read_pairs
from tiebreak.errors import HandoffError
from tiebreak.messages import Message
from tiebreak.records import Pair
from tiebreak.runs.requirements import require
from tiebreak.runs.run import identify_input, read_manifest

PAIRS = [{"prompt": f"{n}?", "response_a": "b", "response_b": "c"} for n in range(2)]
RAW = "is not a finished run, so nobody knows what is in it"


def prepared(folder: Path, policy: Path, **values: Any) -> str:
    """A prepare run."""
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", [{"prompt": "write to a@example.org", "completion": "ok"}])
    prepare(
        PrepareConfig.model_validate(
            {"output": str(folder / "run"), "policy": str(policy), "demonstrations": [str(rows)], **values}
        )
    )
    return str(folder / "run")


def sampled(folder: Path, prompts: str, **inputs: str) -> str:
    """A sample run of these prompts."""
    pairs = [pair.model_dump() for pair in read_pairs(str(write_rows(folder / "pairs.jsonl", PAIRS)))]
    return finished(folder / "sample", "sample", {"prompts": prompts, **inputs}, {"pairs.jsonl": pairs})


def test_a_prepare_run_with_the_step_passes_and_its_manifest_says_how(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(tmp_path / "a", tiny_model, steps=["anonymise"], anonymise={"kinds": ["EMAIL"]})
    require(["anonymised"], run)
    printed = capsys.readouterr().err
    assert "names of people were not looked for" in printed
    assert "only EMAIL was looked for (anonymise.kinds)" in printed
    assert read_manifest(run)["anonymised"]["mode"] == "tag"
    assert read_manifest(run)["anonymised"]["names"].startswith("names of people were not looked for")


def test_one_without_it_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    run = prepared(tmp_path / "a", tiny_model)
    require([], run)
    with pytest.raises(HandoffError, match=r"was prepared without the step anonymise: prepare the rows with 'steps: "):
        require(["anonymised"], run)


def test_a_file_is_refused_before_anyone_sees_it(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    values = {"output": str(tmp_path / "label"), "pairs": str(pairs)}
    assert len(read_some_pairs(LabelConfig.model_validate(values))) == 2
    with pytest.raises(HandoffError, match=RAW):
        read_some_pairs(LabelConfig.model_validate({**values, "require": ["anonymised"]}))


def test_the_chain_is_followed_down_to_the_rows(finished_recipe: Path) -> None:
    with pytest.raises(HandoffError, match="prepare was prepared without the step anonymise"):
        require(["anonymised"], str(finished_recipe / "runs" / "sample"))


@pytest.mark.parametrize("name", ["answers", "templates", "gaps", "samples", "references", "demonstrations_1"])
def test_rows_beside_those_of_an_anonymised_run_are_refused(tmp_path: Path, tiny_model: Path, name: str) -> None:
    clean = prepared(tmp_path / "a", tiny_model, steps=["anonymise"])
    raw = str(write_rows(tmp_path / "raw.jsonl", PAIRS))
    require(["anonymised"], sampled(tmp_path / "b", clean, policy=str(tiny_model), test_set_0=raw))
    mixed = sampled(tmp_path / "c", clean, **{name: raw})
    with pytest.raises(HandoffError, match=f"sample read rows from {raw}"):
        require(["anonymised"], mixed)


def test_a_run_whose_rows_were_changed_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    clean = prepared(tmp_path / "a", tiny_model, steps=["anonymise"])
    made = sampled(tmp_path / "b", clean)
    require(["anonymised"], made)
    write_rows(Path(clean) / "final" / "demonstrations.jsonl", [{"prompt": "a@example.org", "completion": "ok"}])
    for run in (clean, made):  # the sample may have read the rows before or after
        with pytest.raises(HandoffError, match=r"demonstrations\.jsonl was changed after its run was finished"):
            require(["anonymised"], run)


def test_repair_after_anonymise_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    """It would turn `a&#64;example.org` into an address that nobody looks for any more."""
    with pytest.raises(ValueError, match="anonymise before repair: repair uncovers personal data"):
        prepared(tmp_path / "a", tiny_model, steps=["anonymise", "repair"])


def test_a_store_refuses_raw_pairs_whatever_adds_them(tmp_path: Path, tiny_model: Path) -> None:
    clean = sampled(tmp_path / "b", prepared(tmp_path / "a", tiny_model, steps=["anonymise"]))
    raw = write_rows(tmp_path / "raw.jsonl", [{**PAIRS[0], "prompt": "write to a@example.org"}])
    config = write_config(
        tmp_path / "label.yaml",
        output=tmp_path / "label",
        pairs=clean,
        require=["anonymised"],
        simulate={"raters": 1},
        tracking={"mode": "disabled"},
    )
    status, err = run_here("label", "--config", config)
    assert status == 0, err
    url = f"sqlite:///{tmp_path}/label/store/labels.sqlite"
    store = Store.open(url)
    before = store.status()["pairs"]
    pairs = read_pairs(str(raw))
    with pytest.raises(RefusedError, match="takes only pairs from anonymised runs"):
        store.transact(lambda tx: upload_pairs(tx, pairs, "", Source("raw.jsonl", "x"), url, preview=True))
    with pytest.raises(HandoffError, match=RAW):  # the same store, served without the key
        store.add_pairs(pairs, overlap=1, seed=0, source=str(raw), source_id=identify_input(str(raw)).id)
    known = next(iter(store.pairs()))
    typed = known.model_copy(update={"messages": (Message(role="user", content="I am a@example.org"),)})
    with pytest.raises(RefusedError, match=f"these have {known.id}: EMAIL"):
        store.correct_pairs([typed], source="corrections", source_id="corrections", by=None)
    status, err = run_here("label", "correct", "--pairs", records(tmp_path / "typed.jsonl", [typed]), "--store", url)
    assert (status, RAW in err) == (1, True), err
    status, err = run_here("label", "import", "--pairs", records(tmp_path / "own.jsonl", pairs), "--store", url)
    assert (status, RAW in err) == (1, True), err
    assert store.status()["pairs"] == before


def records(path: Path, pairs: list[Pair]) -> Path:
    return write_rows(path, [pair.model_dump(mode="json") for pair in pairs])


def test_a_store_with_raw_pairs_cannot_become_one_of_anonymised_ones(tmp_path: Path) -> None:
    raw = str(write_rows(tmp_path / "raw.jsonl", PAIRS))
    store = Store.open(f"sqlite:///{tmp_path}/labels.sqlite", create=True)
    store.add_pairs(read_pairs(raw), overlap=1, seed=0, source=raw, source_id=identify_input(raw).id)
    with pytest.raises(HandoffError, match=RAW):
        store.require(["anonymised"])


@pytest.mark.parametrize("key", ["demonstrations", "prompts", "gaps"])
def test_a_writer_is_shown_no_raw_rows(tmp_path: Path, tiny_model: Path, key: str) -> None:
    clean = prepared(tmp_path / "a", tiny_model, steps=["anonymise"])
    raw = str(write_rows(tmp_path / "raw.jsonl", [{"prompt": "Why?", "completion": "So."}]))
    methods = {"corruption": 1} | ({"gap-cards": 1} if key == "gaps" else {})
    config = write_config(
        tmp_path / "s.yaml",
        output=tmp_path / "made",
        demonstrations=[clean],
        methods=methods,
        require=["anonymised"],
        **({"endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m"}} if key == "gaps" else {}),
        **({key: raw if key == "gaps" else [clean, raw] if key == "demonstrations" else [raw]}
           if key != "demonstrations" else {}),
    )  # fmt: skip
    words = ["--demonstrations", f'["{clean}", "{raw}"]'] if key == "demonstrations" else []
    status, err = run_here("synthesise", "--config", config, *words)
    assert (status, RAW in err) == (1, True), err


def test_a_judge_is_shown_no_raw_pairs(tmp_path: Path) -> None:
    raw = write_rows(tmp_path / "raw.jsonl", PAIRS)
    words = ("--pairs", raw, "--function", "rubric", "--require", '["anonymised"]', "--output", tmp_path / "judged")
    status, err = run_here("judge", *words)
    assert (status, RAW in err) == (1, True), err
