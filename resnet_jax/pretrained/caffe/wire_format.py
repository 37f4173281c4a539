"""The wire format of protocol buffers, as far as Caffe's files use it: fields within fields, each with its length.

The bytes may be from anywhere. A field that claims more than what surrounds it has is refused before it is read, and
nothing is looked into but what is asked for.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Caffe's own limit of a blob's axes; a repeated setting has one value an axis.
MOST_VALUES = 32
# ResNet-152 has about 9,000 fields; as many as this take less than a second to step over.
_MOST_FIELDS = 250_000
_LONGEST_TEXT_BYTES = 1000
_VALUE_BYTES = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """A field: its value if it is a varint, otherwise where its bytes lie.

    Values of a fixed size that follow one another under one tag are taken together: `times` times tag and value.
    """

    number: int
    wire: int
    value: int
    start: int
    stop: int
    times: int = 1


class Message:
    """The bytes of a file and the fields in them, at most `_MOST_FIELDS` in all."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.size = path, data, len(data)
        self.fields_left = _MOST_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message between two positions."""
        while start < stop:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise ValueError(f"it has more than {_MOST_FIELDS} fields")
            tag, position = self.varint(start, stop)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number < 2**29:
                raise ValueError(f"byte {start}: no field has the number {number}")
            if wire == VARINT:
                value, position = self.varint(position, stop)
                yield Field(number, wire, value, 0, 0)
            elif wire == BYTES:
                length, position = self.varint(position, stop)
                self._check_length(length, position, stop)
                yield Field(number, wire, 0, position, position + length)
                position += length
            elif wire in _VALUE_BYTES:
                self._check_length(_VALUE_BYTES[wire], position, stop)
                count = self._run(start, stop, 1 + _VALUE_BYTES[wire]) if position == start + 1 else 1
                end = position + _VALUE_BYTES[wire] + (count - 1) * (1 + _VALUE_BYTES[wire])
                yield Field(number, wire, 0, position, end, count)
                position = end
            else:
                raise ValueError(f"byte {start}: field {number} has the wire type {wire}, which Caffe does not write")
            start = position

    def varint(self, start: int, stop: int) -> tuple[int, int]:
        """A whole number from 0 to 2^64 - 1, seven bits a byte, and the position after it."""
        value = 0
        for index in range(10):
            if start + index >= stop:
                raise ValueError(f"byte {start}: a number is cut off")
            byte = self.data[start + index]
            value |= (byte & 127) << 7 * index
            if byte < 128 and value < 2**64:
                return value, start + index + 1
        raise ValueError(f"byte {start}: a number has more than 64 bits")

    def integers(self, field: Field, what: str) -> list[int]:
        """The numbers of a repeated field, packed or one alone; no more than one above `MOST_VALUES` of them."""
        need(field, what, VARINT, BYTES)
        if field.wire == VARINT:
            return [field.value]
        values: list[int] = []
        position = field.start
        while position < field.stop and len(values) <= MOST_VALUES:
            value, position = self.varint(position, field.stop)
            values.append(value)
        return values

    def floats(self, field: Field, what: str) -> list[float]:
        """The same for floats of 32 bits."""
        need(field, what, FIXED32, BYTES)
        if field.wire == BYTES and (field.stop - field.start) % 4:
            raise ValueError(f"{what} is cut off")
        starts = range(field.start, field.stop, 4 if field.wire == BYTES else 5)[: MOST_VALUES + 1]
        return [float(np.frombuffer(self.data[start : start + 4], "<f4")[0]) for start in starts]

    def text(self, field: Field, what: str) -> str:
        """The text that a field holds."""
        need(field, what, BYTES)
        if field.stop - field.start > _LONGEST_TEXT_BYTES:
            raise ValueError(f"{what} has {field.stop - field.start} bytes; allowed are {_LONGEST_TEXT_BYTES}")
        return self.data[field.start : field.stop].decode()

    @staticmethod
    def _check_length(length: int, position: int, stop: int) -> None:
        if length > stop - position:
            raise ValueError(f"byte {position}: {length} bytes are claimed, {stop - position} are left")

    def _run(self, start: int, stop: int, step: int) -> int:
        """How many fields of one tag and `step` bytes follow one another; twice as many are looked at every time."""
        tag, count, part = self.data[start], 1, 1
        longest = (stop - start) // step
        while count < longest and self.data[start + count * step] == tag:
            part = min(2 * part, longest - count, 2**16)
            here = start + count * step
            others = np.frombuffer(self.data[here : here + part * step], np.uint8)[::step] != tag
            if others.any():
                return count + int(others.argmax())
            count += part
        return count


def need(field: Field, what: str, *wires: int) -> None:
    """Raises a ValueError for a field of another wire type than these."""
    if field.wire not in wires:
        raise ValueError(f"{what} has the wire type {field.wire}, expected {' or '.join(map(str, wires))}")
