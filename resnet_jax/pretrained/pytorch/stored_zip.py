"""ZIP archives whose entries are stored as they are: where in the file each lies, with nothing unpacked.

The layout is that of PKWARE's "APPNOTE.TXT - .ZIP File Format Specification", sections 4.3.6 to 4.3.16 and 4.5.3.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

# The tensors of 1202 layers, their momentum and their moving average are 18,000 entries.
MOST_ENTRIES = 100_000
_MOST_DIRECTORY_BYTES = 16 * 2**20

_END = struct.Struct("<4s4HIIH")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_RECORD = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL, _ENCRYPTED, _SIZES_64 = 0xFFFFFFFF, 1, 1


@dataclass(frozen=True)
class StoredEntry:
    """One entry of an archive.

    Attributes:
      start: the byte of the file where its content starts.
      size: of the content, in bytes.
      checksum: CRC-32 of the content.
    """

    start: int
    size: int
    checksum: int


def read_directory(
    file: io.BufferedIOBase, file_bytes: int, check_name: Callable[[str], None]
) -> dict[str, StoredEntry]:
    """Finds every entry of an archive, and checks that they lie in the file, apart from each other.

    Args:
      file: open for reading.
      file_bytes: its size.
      check_name: raises a ValueError for a name that must not be there, before anything else is said of the entry.

    Raises:
      ValueError: the archive is cut off or damaged, or an entry is compressed, encrypted, listed twice, overlaps
        another, reaches out of the file, or has a name that leads out of a folder.
    """
    start, size, count = _find_directory(file, file_bytes)
    if count > MOST_ENTRIES or size > _MOST_DIRECTORY_BYTES:
        raise ValueError(
            f"the zip directory has {count} entries in {size} bytes; allowed are {MOST_ENTRIES} "
            f"in {_MOST_DIRECTORY_BYTES}"
        )
    directory = _read(file, start, size)
    entries: dict[str, StoredEntry] = {}
    places, position = [], 0
    for _ in range(count):
        name, header, content_bytes, checksum, position = _record(directory, position, check_name)
        if name in entries:
            raise ValueError(f"the zip archive lists {name!r} twice")
        content = _content_start(file, header, name, start)
        if content + content_bytes > start:
            raise ValueError(
                f"zip entry {name!r} ends at byte {content + content_bytes}, behind the data's end {start}"
            )
        entries[name] = StoredEntry(content, content_bytes, checksum)
        places.append((header, content + content_bytes, name))
    if position != size:
        raise ValueError(f"the zip directory has {size} bytes, its {count} entries take {position}")
    places.sort()
    for (_, end, name), (header, _, after) in zip(places, places[1:], strict=False):
        if header < end:
            raise ValueError(f"zip entries {name!r} and {after!r} overlap")
    return entries


def _find_directory(file: io.BufferedIOBase, file_bytes: int) -> tuple[int, int, int]:
    """First byte, bytes and entries of the directory, which stands at the end of the file but for its end record."""
    at = file_bytes - _END.size
    end = _END.unpack(_read(file, at, _END.size)) if at >= 0 else (b"",)
    if end[0] != b"PK\5\6" or end[7]:
        raise ValueError("the zip archive has no end record at the file's end; it is cut off, or something follows it")
    _, disk, first_disk, count_here, count, size, start, _ = end
    locator = _LOCATOR_64.unpack(_read(file, at - _LOCATOR_64.size, _LOCATOR_64.size)) if at > 20 else (b"",)
    if locator[0] == b"PK\6\7":
        at -= _LOCATOR_64.size + _END_64.size
        end_64 = _END_64.unpack(_read(file, at, _END_64.size)) if at >= 0 else (b"",)
        if end_64[0] != b"PK\6\6" or locator[2] != at:
            raise ValueError("the zip archive's 64-bit end record is not where it should be")
        disk, first_disk, count_here, count, size, start = end_64[4:]
    if disk or first_disk or count_here != count:
        raise ValueError("the zip archive is one of several parts; allowed are whole ones")
    if start + size != at:
        raise ValueError(f"the zip directory is {size} bytes from byte {start}, and should end at {at}")
    return start, size, count


def _record(directory: bytes, position: int, check_name: Callable[[str], None]) -> tuple[str, int, int, int, int]:
    """One entry of the directory: name, the byte of its local header, size, checksum, and where the next one is."""
    fields = directory[position : position + _RECORD.size]
    if len(fields) < _RECORD.size or fields[:4] != b"PK\1\2":
        raise ValueError(f"the zip directory has no entry at its byte {position}, where one should be")
    _, _, _, flags, method, _, _, checksum, packed, size, *lengths, _, _, _, header = _RECORD.unpack(fields)
    name_bytes, extra_bytes, comment_bytes = lengths
    name_at = position + _RECORD.size
    extra_at = name_at + name_bytes
    position = extra_at + extra_bytes + comment_bytes
    if position > len(directory):
        raise ValueError("the zip directory is cut off within an entry")
    name = directory[name_at:extra_at].decode()
    _check_path(name)
    check_name(name)
    if flags & _ENCRYPTED:
        raise ValueError(f"zip entry {name!r} is encrypted")
    extra = directory[extra_at : extra_at + extra_bytes]
    size, packed, header = _sizes_64(extra, [size, packed, header], name)
    if method or packed != size:
        raise ValueError(f"zip entry {name!r} is compressed (method {method}); allowed are entries stored as they are")
    return name, header, size, checksum, position


def _check_path(name: str) -> None:
    if "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"zip entry {name[:100]!r} has a name that is no plain path inside the archive")


def _sizes_64(extra: bytes, sizes: list[int], name: str) -> list[int]:
    """The same with those that do not fit into 32 bits taken from the extra field that has them, in their order."""
    found, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == _SIZES_64:
            found = extra[position + 4 : position + 4 + length]
            break
        position += 4 + length
    for number, size in enumerate(sizes):
        if size == _FULL:
            if len(found) < 8:
                raise ValueError(f"zip entry {name!r} lacks its 64-bit sizes")
            sizes[number], found = int.from_bytes(found[:8], "little"), found[8:]
    return sizes


def _content_start(file: io.BufferedIOBase, header: int, name: str, directory_start: int) -> int:
    """Where the content starts, by the header before it, which has to agree with the directory."""
    encoded = name.encode()
    if header + _LOCAL.size + len(encoded) > directory_start:
        raise ValueError(
            f"zip entry {name!r} claims to start at byte {header}, behind the data's end {directory_start}"
        )
    data = _read(file, header, _LOCAL.size + len(encoded))
    signature, _, flags, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(data[: _LOCAL.size])
    if signature != b"PK\3\4" or name_bytes != len(encoded) or data[_LOCAL.size :] != encoded:
        raise ValueError(f"zip entry {name!r} is not at byte {header}, where the directory says it is")
    if flags & _ENCRYPTED or method:
        raise ValueError(f"zip entry {name!r} is compressed or encrypted, unlike the directory says")
    return header + len(data) + extra_bytes


def _read(file: io.BufferedIOBase, start: int, count: int) -> bytes:
    file.seek(start)
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"the file ends within {count} bytes from byte {start}")
    return data
