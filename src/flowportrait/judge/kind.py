"""What kind of judge spoke: said in every verdict, report and certificate."""

from __future__ import annotations

from typing import Literal

Kind = Literal["multimodal LLM panel", "measured panel"]
