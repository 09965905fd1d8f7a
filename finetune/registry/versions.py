"""Registered versions and stages, which gto keeps as Git tags: haiku@v2.0.0, haiku#production#3."""

import re
from dataclasses import dataclass
from typing import Any

from finetune.errors import UserError

STAGES = ("production", "staging")

_VERSION = re.compile(r"v(?P<major>0|[1-9]\d*)(\.\d+\.\d+)?")
_REGISTERED = re.compile(
    rf"(?P<model>[a-zA-Z0-9][a-zA-Z0-9/_-]*)(@(?P<version>latest|{_VERSION.pattern})|\#(?P<stage>[a-zA-Z0-9/_-]+))"
)
"""gto's letters for names; its versions are semantic ones (v2.0.0), of which v2 is short for the first of its major."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    version: str
    """As gto has it: v2.0.0."""
    commit: str
    """Git commit whose dvc.lock says which models/tuned it is."""

    @property
    def name(self) -> str:
        """As a person writes it: haiku@v2."""
        return f"{self.model}@{self.version.removesuffix('.0.0')}"

    @property
    def tag(self) -> str:
        """The Git tag that gto gave it."""
        return f"{self.model}@{self.version}"


def full(version: str) -> str:
    """`version` as gto has it: v2 becomes v2.0.0. Raises UserError if it is no version."""
    match = _VERSION.fullmatch(version)
    if not match:
        raise UserError(f"--version {version}: is no version; write v2, or v2.0.0")
    return version if "." in version else f"{version}.0.0"


def next_after(taken: list[Version]) -> str:
    """The first version of the next major."""
    majors = [int(match["major"]) for one in taken if (match := _VERSION.match(one.version))]
    return f"v{max(majors, default=0) + 1}.0.0"


def of(repo: Any, model: str, withdrawn: bool = False) -> list[Version]:
    """The versions of `model` that are registered, the newest first; with those that were taken back, if asked for."""
    return [_version(row) for row in _rows(repo, model, withdrawn) if row["registrations"]]


def in_stage(repo: Any, model: str, stage: str) -> Version | None:
    """The version of `model` that was last given `stage`."""
    rows = _rows(repo, f"{model}#{stage}")
    return _version(rows[0]) if rows else None


def named(repo: Any, name: str) -> Version | None:
    """The version that `name` means (haiku@v2, haiku@latest, haiku#production); None if it has no such form.

    Raises UserError if no such version is registered, or none has that stage.
    """
    match = _REGISTERED.fullmatch(name)
    if not match:
        return None
    model, version, stage = match["model"], match["version"], match["stage"]
    known = of(repo, model)
    if stage:
        found = in_stage(repo, model, stage)
    else:
        found = next((one for one in known if version == "latest" or one.version == full(version)), None)
    if found is None:
        there = f"{model} has {', '.join(one.name for one in known)}" if known else f"no {model} is registered here"
        raise UserError(f"{name}: not in the registry: {there}; `git fetch --tags` brings what others have registered")
    return found


def _rows(repo: Any, name: str, withdrawn: bool = False) -> list[dict]:
    import gto.api
    from gto.exceptions import ArtifactNotFound

    try:
        return gto.api.show(repo.scm, name, deprecated=withdrawn)
    except ArtifactNotFound:
        return []


def _version(row: dict) -> Version:
    return Version(row["artifact"], row["version"], row["commit_hexsha"])
