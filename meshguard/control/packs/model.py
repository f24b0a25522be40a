"""Values of control packs: a control, a pack of them, what is judged, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from meshguard.model.errors import Problem
from meshguard.policy.traits import traits

if TYPE_CHECKING:
    from meshguard.control.policies import LoadedPolicy
    from meshguard.control.settings.configuration import Configuration
    from meshguard.control.settings.load import LoadedConfiguration
    from meshguard.policy.reach import Edge

__all__ = ["Check", "Control", "Fault", "NotJudged", "Pack", "Result", "Status", "Subject"]

Status = Literal["satisfied", "violated", "not_assessed", "not_applicable"]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """One control. `id` is its number in its source, `checks` name entries of `checks.CHECKS`, `request` entries of
    `telemetry.controls.TESTS`."""

    id: str
    title: str
    checks: tuple[str, ...] = ()
    request: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """`name` as configurations say it, `source` the document that the numbers are from."""

    name: str
    title: str
    source: str
    controls: tuple[Control, ...]

    def cited(self, control: Control) -> str:
        """How a control is named in records and findings: `pci-dss-4.0/7.3.3`."""
        return f"{self.name}/{control.id}"


@dataclass(slots=True)
class Subject:
    """What is judged. `loaded` None: policies alone; `policy` None: it comes in a bundle. `observed`: permissions with calls seen."""

    loaded: LoadedConfiguration | None = None
    policy: LoadedPolicy | None = None
    observed: Sequence[Edge] | None = None
    memo: dict[str, list[Fault] | NotJudged] = field(default_factory=dict)
    wide: dict[str, frozenset[str]] | None = None

    @property
    def configuration(self) -> Configuration:
        """Raises NotJudged where there is none."""
        if self.loaded is None:
            raise NotJudged("not_assessed", "a configuration was not given")
        return self.loaded.configuration

    def traits(self) -> Mapping[str, frozenset[str]]:
        """What is wide about each rule, by id; worked out once."""
        if self.wide is None:
            compiled = self.policies().compiled
            self.wide = {rule.id: traits(rule, compiled.roles) for rule in compiled.rules}
        return self.wide

    def policies(self) -> LoadedPolicy:
        """Raises NotJudged where there is none."""
        if self.policy is None:
            raise NotJudged("not_assessed", "the policy comes in a bundle: check its documents")
        return self.policy


class NotJudged(Exception):
    """A check that could not, or need not, judge; in words why."""

    def __init__(self, status: Literal["not_assessed", "not_applicable"], words: str) -> None:
        super().__init__(words)
        self.status: Literal["not_assessed", "not_applicable"] = status
        self.words = words


@dataclass(frozen=True, slots=True)
class Fault:
    """What a check found: `words` say what is expected at `path` of `file` (None: the configuration); `value` is what stands there."""

    path: Path
    words: str
    file: str | None = None
    value: str = ""


Check = Callable[[Subject], Iterator[Fault]]


@dataclass(frozen=True, slots=True)
class Result:
    """A control with its status; `problems` where it is violated, `notes` for what was not judged."""

    pack: Pack
    control: Control
    status: Status
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    def structured(self) -> Mapping[str, object]:
        """For machines."""
        return {
            "control": self.pack.cited(self.control),
            "title": self.control.title,
            "status": self.status,
            "findings": [{name: getattr(problem, name) for name in Problem.__slots__} for problem in self.problems],
            "notes": list(self.notes),
            "per_request": list(self.control.request),
        }
