"""What a stage hands back to the pipeline, which writes it into the folder's manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StageResult:
    rows_in: int
    rows_out: int
    failed: dict[str, int]
    """Rows per reason."""
    tokens: int = 0
    details: dict[str, Any] = field(default_factory=dict)
