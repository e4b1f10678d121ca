"""What a card says about judgments and those who made them."""

from __future__ import annotations

from collections.abc import Iterator

from tiebreak.card.content import Fact, Manifest, fact


def label_facts(label: Manifest) -> Iterator[Fact]:
    """The facts of a labelling run.

    Only people consent. The versions of the guidelines are those that judgments record; the manifests of older runs have
    only the configured version, which simulated raters do not read.
    """
    people = "human" in (label.get("kinds") or {})
    consented = people and bool((label.get("config") or {}).get("consent"))
    older = people and "raters" not in label
    for key, name, applies in (
        ("kinds", "judgments, by kind of rater", True),
        ("judgments", "judgments", True),
        ("raters", "raters, by kind", True),
        ("pairs", "pairs judged", True),
        ("preferences", "preferences", True),
        ("config/overlap", "raters a pair", True),
        ("guideline_versions", "judgments, by version of the guidelines", True),
        ("config/guideline_version", "version of the guidelines", older),
        ("config/consent_version", "version of the consent", consented),
        ("agreement", "agreement of two raters, by kind", True),
        ("event_log_head", "hash of the last judgment's event", True),
    ):
        yield from fact(label, name, key) if applies else ()
