"""Formats as data: their options, and the fields of nodes that name one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

from streamflow.codecs.conversion import CsvCodec, JsonCodec, MsgpackCodec, RawCodec
from streamflow.codecs.framing import CsvSplitter, LineSplitter, MsgpackSplitter, Splitter
from streamflow.contracts import Codec
from streamflow.errors import GraphError, suggestion
from streamflow.nodes.declarations import Declaration
from streamflow.nodes.plugins import FORMATS, load, registered


class Format(Declaration):
    """Declares a format with its options.

    What one payload may become is bounded, so that a hostile one is rejected and not gathered until
    the memory is full: 64 MiB in a file, about a million lists and mappings, and as many levels of
    them as the codec knows.

    Attributes:
        terminator: What follows each payload in a file.
    """

    terminator: ClassVar[bytes] = b"\n"

    _name: str = PrivateAttr("")

    def model_post_init(self, _context: object) -> None:
        """Take the first name that the class is registered under."""
        named = (
            name
            for name, point in registered(FORMATS).items()
            if point.attr == type(self).__qualname__ and point.load() is type(self)
        )
        self._name = next(named, "")

    @property
    def name(self) -> str:
        """The name that the format is registered under; empty if it is not."""
        return self._name

    def codec(self) -> Codec:
        """Return a codec for payloads that stand alone, as messages do.

        Raises:
            ValueError: The options do not say enough for that.
        """
        raise NotImplementedError

    def line_codec(self) -> Codec:
        """Return a codec for payloads that follow one another in a file."""
        return self.codec()

    def splitter(self) -> Splitter:
        """Return what finds the payloads in a file."""
        return LineSplitter()


class JsonFormat(Format):
    """JSON, one value per payload; in a file one per line.

    JSON has no numbers but finite ones: a record that holds another is rejected, since null in its
    place would be a loss that nobody sees. Arrays become lists, bytes become base64.
    """

    def codec(self) -> Codec:
        """Return a codec."""
        return JsonCodec()


class MsgpackFormat(Format):
    """MessagePack; arrays are kept exactly.

    An array is the extension type 1, whose data is in turn a msgpack list of dtype (``"<f4"``),
    shape and the elements' bytes, little-endian, last axis fastest. Scalars of numpy are numbers.
    Mappings have text as keys, as in JSON: a record with others is rejected, when it is written as
    well as when it is read.
    """

    terminator: ClassVar[bytes] = b""

    def codec(self) -> Codec:
        """Return a codec."""
        return MsgpackCodec()

    def splitter(self) -> Splitter:
        """Return what finds the values in a file."""
        return MsgpackSplitter()


class RawFormat(Format):
    """Bytes as they are; text is written as UTF-8. In a file, one payload per line."""

    def codec(self) -> Codec:
        """Return a codec."""
        return RawCodec(is_line=False)

    def line_codec(self) -> Codec:
        """Return a codec that rejects payloads which would be more than a line."""
        return RawCodec(is_line=True)

    def splitter(self) -> Splitter:
        """Return what finds the lines in a file."""
        return LineSplitter(is_text=False)


class CsvFormat(Format):
    """Delimited text: a row per record.

    An empty cell means nothing (null), a cell that is a decimal number means that number, any other
    one its text. Lists and objects are written as JSON. As in JSON, numbers that are not finite are
    rejected, and bytes become base64.
    """

    delimiter: str = Field(",", description="What stands between two cells; one ASCII character.")
    quotechar: str = Field('"', description="What encloses a cell that holds special characters.")
    fields: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Names of the columns. Without them the first row of a file names them; "
        "with them a file has no such row.",
    )

    @field_validator("delimiter", "quotechar")
    @classmethod
    def _check_character(cls, character: str) -> str:
        if len(character) != 1 or not character.isascii() or character in "\r\n":
            message = "expected one ASCII character, no line break"
            raise ValueError(message)
        return character

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if fields is not None and len(set(fields)) < len(fields):
            message = "expected each name once"
            raise ValueError(message)
        return fields

    @model_validator(mode="after")
    def _check_characters_differ(self) -> CsvFormat:
        if self.delimiter == self.quotechar:
            message = "expected a delimiter that is not the quotechar"
            raise ValueError(message)
        return self

    def codec(self) -> Codec:
        """Return a codec; ``fields`` must be given.

        Raises:
            ValueError: They are not.
        """
        if self.fields is None:
            message = "expected the names of the columns, found none; give csv its fields"
            raise ValueError(message)
        return CsvCodec(self.fields, delimiter=self.delimiter, quotechar=self.quotechar)

    def splitter(self) -> Splitter:
        """Return what finds the rows in a file."""
        return CsvSplitter(delimiter=self.delimiter, quotechar=self.quotechar)


def named_format(name: str, options: Mapping[str, Any] | None = None) -> Format:
    """Return the format registered under ``name``, declared with ``options``.

    Raises:
        ValueError: There is none of this name.
        GraphError: The options do not fit; located under the name.
    """
    try:
        declare = load(FORMATS, name)
    except KeyError:
        message = f"expected a format; {suggestion(name, list(registered(FORMATS)))}"
        raise ValueError(message) from None
    try:
        declared: Format = declare(**(options or {}))
    except GraphError as error:
        raise GraphError([problem.within(name) for problem in error.problems]) from error
    declared._name = name
    return declared


def _read_format(value: object) -> object:
    if isinstance(value, Format):
        return value
    if isinstance(value, str):
        return named_format(value)
    if isinstance(value, Mapping) and len(value) == 1:
        [(name, options)] = value.items()
        if isinstance(name, str) and isinstance(options, Mapping | None):
            return named_format(name, options and {str(key): options[key] for key in options})
    message = "expected the name of a format, or its name and its options"
    raise ValueError(message)


def _write_format(declared: Format) -> str | dict[str, Any]:
    if not declared.name:
        message = (
            f"expected a format that is registered under {FORMATS}, found {declared!r}; "
            "add an entry point"
        )
        raise ValueError(message)
    options = declared.model_dump(mode="json", exclude_defaults=True)
    return {declared.name: options} if options else declared.name


def _check_codec(declared: Format) -> Format:
    declared.codec()
    return declared


FileFormatField: TypeAlias = Annotated[
    Format, BeforeValidator(_read_format), PlainSerializer(_write_format)
]
"""A field that holds the format of files: in YAML its name, or its name and its options."""

FormatField: TypeAlias = Annotated[FileFormatField, AfterValidator(_check_codec)]
"""Likewise, of payloads that stand alone, so that nothing but the options tells their layout."""
