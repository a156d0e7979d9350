"""Formats: how bytes become values and values bytes, whole batches at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

from streamflow.codecs import cells
from streamflow.codecs.framing import CsvSplitter, LineSplitter, MsgpackSplitter, Splitter
from streamflow.codecs.values import (
    dump_json,
    dump_json_each,
    dump_msgpack,
    load_json,
    load_msgpack,
)
from streamflow.contracts import Fetch
from streamflow.errors import GraphError, suggestion
from streamflow.nodes.declarations import Declaration
from streamflow.nodes.plugins import FORMATS, load, registered
from streamflow.records import (
    Batch,
    Partition,
    Rejected,
    Values,
    split_rejected,
    to_columns,
)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Values of the payloads that could be decoded, in order, and the cause for each other one.

    Attributes:
        values: One value for each payload that is not in ``causes``.
        causes: Why a payload could not be decoded, by its index.
    """

    values: Values
    causes: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Payloads of the values that could be encoded, in order, and the cause for each other one."""

    payloads: list[bytes]
    causes: Mapping[int, str] = field(default_factory=dict)


class Codec(Protocol):
    """Decodes and encodes payloads, each one record; keeps no state between calls."""

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return the values of ``payloads``; never raises for bad input."""
        ...

    def encode(self, batch: Batch) -> Encoded:
        """Return the payloads of a batch's values; never raises for a value it cannot encode."""
        ...


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
        return _JsonCodec()


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
        return _MsgpackCodec()

    def splitter(self) -> Splitter:
        """Return what finds the values in a file."""
        return MsgpackSplitter()


class RawFormat(Format):
    """Bytes as they are; text is written as UTF-8. In a file, one payload per line."""

    def codec(self) -> Codec:
        """Return a codec."""
        return _RawCodec(is_line=False)

    def line_codec(self) -> Codec:
        """Return a codec that rejects payloads which would be more than a line."""
        return _RawCodec(is_line=True)

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


def decode(codec: Codec, batch: Batch, ends: Mapping[Partition, int], *, skipped: int = 0) -> Fetch:
    """Return what a reader received, from a batch whose ``originals`` are still to be decoded."""
    assert batch.originals is not None
    decoded = codec.decode(batch.originals)
    good, rejected = split_rejected(batch, decoded.causes)
    return Fetch(good.with_values(decoded.values), ends, rejected, skipped)


def encode(codec: Codec, batch: Batch) -> tuple[Batch, list[bytes], Rejected | None]:
    """Return the records that can be encoded, their payloads, and the records that cannot."""
    encoded = codec.encode(batch)
    good, rejected = split_rejected(batch, encoded.causes)
    return good, encoded.payloads, rejected


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


class _JsonCodec:
    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        values, causes = _convert(load_json, payloads, "JSON")
        return Decoded(to_columns(values), causes)

    def encode(self, batch: Batch) -> Encoded:
        rows = batch.rows()
        try:
            return Encoded(dump_json_each(rows))
        except Exception:  # at least one is bad: find out which
            return Encoded(*_convert(dump_json, rows, "a value that JSON holds"))


class _MsgpackCodec:
    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        values, causes = _convert(load_msgpack, payloads, "msgpack")
        return Decoded(to_columns(values), causes)

    def encode(self, batch: Batch) -> Encoded:
        rows = batch.rows()
        return Encoded(*_convert(dump_msgpack, rows, "a value that msgpack holds"))


class CsvCodec:
    """Decodes and encodes rows whose cells are the values of ``fields``."""

    def __init__(self, fields: Sequence[str], *, delimiter: str, quotechar: str) -> None:
        self._fields = tuple(fields)
        self._known = frozenset(fields)
        self._dialect = {"delimiter": delimiter, "quotechar": quotechar}

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the columns."""
        return self._fields

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Return columns by field."""
        num_fields = len(self._fields)
        numbers = cells.read_numbers(payloads, num_fields=num_fields, **self._dialect)
        if numbers is not None:
            return Decoded(dict(zip(self._fields, numbers, strict=True)))
        causes: Mapping[int, str] = {}
        try:
            rows = self._rows(payloads)
        except ValueError:  # at least one is bad: find out which
            rows, causes = _convert(
                lambda payload: self._rows([payload])[0],
                payloads,
                f"a csv row of {num_fields} fields",
            )
        columns = zip(*rows, strict=True) if rows else ((),) * num_fields
        values = map(cells.read_column, columns)
        return Decoded(dict(zip(self._fields, values, strict=True)), causes)

    def encode(self, batch: Batch) -> Encoded:
        """Return rows; a field that a record lacks is an empty cell, one too many an error."""
        rows, causes = _convert(self._cells, batch.rows(), "values that a csv row holds")
        return Encoded(cells.write_rows(rows, **self._dialect), causes)

    def header(self) -> bytes:
        """Return the row that names the fields."""
        return cells.write_rows([self._fields], **self._dialect)[0]

    def _rows(self, payloads: Iterable[bytes]) -> list[list[str]]:
        texts = [str(payload, "utf-8") for payload in payloads]
        return cells.read_rows(texts, num_fields=len(self._fields), **self._dialect)

    def _cells(self, value: Any) -> list[str | int | float | None]:
        if not self._fields or not isinstance(value, Mapping):
            message = f"no fields in {type(value).__name__}"
            raise TypeError(message)
        if not value.keys() <= self._known:
            unknown = ", ".join(str(name) for name in value if name not in self._known)
            message = f"the unknown fields {unknown}"
            raise ValueError(message)
        return [cells.write_cell(value.get(name)) for name in self._fields]


@dataclass(frozen=True, slots=True)
class _RawCodec:
    is_line: bool

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        return Decoded(list(payloads))

    def encode(self, batch: Batch) -> Encoded:
        return Encoded(*_convert(self._payload, batch.rows(), "bytes or text"))

    def _payload(self, value: Any) -> bytes:
        if not isinstance(value, str | bytes | bytearray | memoryview):
            raise TypeError(type(value).__name__)
        payload = value.encode() if isinstance(value, str) else bytes(value)
        if self.is_line and b"\n" in payload:
            message = "a line break within, which would end the record"
            raise ValueError(message)
        return payload


def _convert(
    convert: Callable[[_Item], _Result], items: Sequence[_Item], expected: str
) -> tuple[list[_Result], dict[int, str]]:
    """Return ``items`` converted, and the cause for each that cannot be."""
    try:
        return list(map(convert, items)), {}
    except Exception:  # at least one is bad: find out which
        results: list[_Result] = []
        causes: dict[int, str] = {}
        for index, item in enumerate(items):
            try:
                results.append(convert(item))
            except Exception as error:  # values are of any type, and may raise anything
                causes[index] = f"expected {expected}, found {error}"
        return results, causes
