"""Shadow: a whole candidate policy beside the live one, judged with it and enforced by nobody."""

from __future__ import annotations

from pydantic import Field

from meshguard.control.settings.values import DocumentPath, Section

__all__ = ["ShadowConfig"]


class ShadowConfig(Section):
    """What the candidate would have decided otherwise is on record and counted; what is wrong with it never touches the live policy."""

    policies: list[DocumentPath] = Field(min_length=1, description="Files and directories of the candidate policy.")
