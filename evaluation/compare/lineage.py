"""The policy that each policy was trained from, according to the manifests' input `policy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.compare.reading import Evaluation, Link


@dataclass(frozen=True)
class Origin:
    """The policy that another is compared with, to show the effect of its training."""

    policy: str
    """the evaluated policy"""
    trained: bool
    """whether the policy was trained from it; False: that is unknown, and the baseline is taken instead"""
    through: tuple[str, ...] = ()
    """unevaluated stages in between, in order of training"""


class Lineage:
    """The evaluated policies, among the runs that they were made from."""

    def __init__(self, evaluation: Evaluation, links: Sequence[Link]) -> None:
        self.evaluation = evaluation
        self._links = {link.id: link for link in links}
        self._recorded = {name: self._input_of(name) for name in evaluation.policies}

    def run_of(self, policy: str) -> Link | None:
        """The run of an evaluated policy; None for a model without a run."""
        return self._links.get(self._identity(policy))

    def origin_of(self, policy: str) -> Origin | None:
        """The nearest evaluated policy that it was trained from; otherwise the baseline; None if neither is informative."""
        through: list[str] = []
        link = self.run_of(policy)
        while link is not None and "policy" in link.manifest["inputs"]:
            before = link.manifest["inputs"]["policy"]
            for name in self.evaluation.policies:
                if name != policy and self._identity(name) in (before["id"], before["source"]):
                    return Origin(name, True, tuple(reversed(through)))
            link = self._links.get(str(before["id"]))
            through += [link.stage] if link is not None else []
        return self._by_order(policy)

    def subjects(self) -> list[str]:
        """The policies that get verdicts: all but the baseline and its ancestors."""
        baseline = self.evaluation.baseline
        left_out = {baseline}
        before = self.origin_of(baseline) if baseline in self.evaluation.policies else None
        while before is not None and before.trained and before.policy not in left_out:
            left_out.add(before.policy)
            before = self.origin_of(before.policy)
        names = [name for name in self.evaluation.policies if name not in left_out]
        return names or [name for name in self.evaluation.policies if name != baseline]

    def _by_order(self, policy: str) -> Origin | None:
        """Fallback without manifests. A report without its policies' inputs lists a base before its baseline."""
        names, baseline = list(self.evaluation.policies), self.evaluation.baseline
        if baseline not in names:
            return None
        first = names[0]
        if policy == baseline:
            return Origin(first, True) if first != policy and not self._recorded[first] else None
        return Origin(baseline, False) if names.index(policy) > names.index(baseline) else None

    def _identity(self, policy: str) -> str:
        recorded = self._recorded[policy]
        return str(recorded["id"]) if recorded else self.evaluation.policies[policy].id

    def _input_of(self, policy: str) -> Mapping[str, str] | None:
        inputs = self.evaluation.manifest["inputs"]
        found: Mapping[str, str] | None = inputs.get(f"policy_{policy}") or inputs.get(f"policies.{policy}")
        return found
