"""What ``streamflow doctor`` has to say of one thing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What it is.
        found: What is there.
        cure: What to do; empty if all is well.
        is_needed: Whether a graph that was named cannot run without it.
    """

    subject: str
    found: str
    cure: str = ""
    is_needed: bool = False
