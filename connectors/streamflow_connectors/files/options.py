"""Where records lie and how they are written: the options that file sources and sinks share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, model_validator

from streamflow.codecs.formats import FileFormatField, Format, named_format
from streamflow.errors import GraphError, Problem
from streamflow.nodes.declarations import Declaration
from streamflow.nodes.plugins import FORMATS, missing_packages, registered
from streamflow_connectors.files.packing import requires, without_packing
from streamflow_connectors.files.parquet import REQUIRES, ParquetFormat


class FileOptions(Declaration):
    """Where the records lie, and how they are written."""

    path: str = Field(
        min_length=1,
        description="The file, - for standard input or output; .gz and .zst are unpacked or "
        "packed. A source takes a pattern such as logs/*.csv, too, and reads its files in order "
        "of name.",
    )
    format: FileFormatField | None = Field(
        None, description="How records are written; by default what the suffix says."
    )

    @model_validator(mode="after")
    def _check(self) -> FileOptions:
        if self.format is None and _suffix(self.path) not in registered(FORMATS):
            message = (
                f"expected a format, found none and a path that does not tell it, {self.path}; "
                f"set format"
            )
            raise ValueError(message)
        if self.is_parquet and (self.path != without_packing(self.path) or not self.may_be_file):
            message = (
                f"expected the path of a parquet file, which is packed within and no pipe, found "
                f"{self.path}; give one such as data.parquet"
            )
            raise GraphError([Problem(("path",), message)])
        return self

    @property
    def resolved_format(self) -> Format:
        """The format, as declared or as the suffix says."""
        return self.format or named_format(_suffix(self.path))

    @property
    def is_parquet(self) -> bool:
        """Whether the file is one of columns."""
        return isinstance(self.resolved_format, ParquetFormat)

    @property
    def may_be_file(self) -> bool:
        """Whether it is no pipe or device, as far as shows; a relative path shows when opened."""
        full = Path(self.path)
        return self.path != "-" and not (
            full.is_absolute() and full.exists() and not full.is_file()
        )

    def extra_requires(self) -> dict[str, str]:
        """Return what the file needs beyond the package itself, as `Node.requires` does."""
        return requires(self.path) | (REQUIRES if self.is_parquet else {})

    def deep_problems(self, folder: Path) -> Iterator[Problem]:
        """Yield the packages that the file lacks."""
        for message in missing_packages(self.extra_requires()):
            yield Problem(("path",), message)


def _suffix(path: str) -> str:
    return Path(without_packing(path)).suffix.removeprefix(".")
