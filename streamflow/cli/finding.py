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


def told(error: Exception) -> str:
    """Return an error in a line: of what a compiler has printed, the first error."""
    lines = str(error).strip().splitlines() or [""]
    line = next((line for line in lines if "error:" in line), lines[0])
    return f"{type(error).__name__}: {line}"
