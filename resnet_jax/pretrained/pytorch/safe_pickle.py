"""Reading of pickles that may be from anywhere: plain values, and the few calls that the reader names.

A pickle is a program for a small stack machine. Python's own reader lets it import and call anything; this one has
only the opcodes that plain values need, and a name in the pickle stands for what the reader of the file says it
does, or is refused. The opcodes and how their arguments are stored are taken from the standard library's
`pickletools`. What comes out may contain itself, or be nested deeper than Python can recurse.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, cast

# A checkpoint of 1202 layers takes 0.8 MB and 220,000 opcodes. An opcode makes at most some 100 bytes of memory.
MOST_BYTES = 16 * 2**20
MOST_OPCODES = 2**20
NEWEST_PROTOCOL = 5

_LONGEST_NAME_BYTES = 1000
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_SMALL_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
# Whole numbers beyond 64 bits can be chosen so that all have one hash, and filling a dict takes hours.
_LARGEST_KEY = 2**63


class ForbiddenName(ValueError):
    """The pickle asks for a function or class that the reader does not allow."""


@dataclass(frozen=True)
class _Function:
    name: str
    call: Callable[[tuple], Any]


def load(
    stream: io.BufferedIOBase,
    *,
    calls: Mapping[str, Callable[[tuple], Any]] | None = None,
    constants: Mapping[str, Any] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    dropped_attributes: tuple[str, ...] = (),
) -> Any:
    """Reads one pickle of protocol 2 to 5, runs nothing in it, and leaves the stream behind its end.

    Args:
      stream: open for reading, has `tell`.
      calls: functions by the full names that stand for them in the pickle, e.g. "collections.OrderedDict"; they get
        the tuple of arguments, and raise a ValueError for any that are not what they should be.
      constants: likewise, names that stand for values.
      persistent: what a persistent id stands for; None refuses them.
      dropped_attributes: those that the pickle may set on a dict, and that are dropped.

    Returns:
      A value of dicts, lists, tuples, texts, bytes, numbers, bools, None, and what `calls`, `constants` and
      `persistent` made.

    Raises:
      ForbiddenName: it asks for any other name; the message has it in full.
      ValueError: anything else that is wrong, with the byte of the stream where it is.
    """
    source = _Source(stream)
    machine = _Machine(calls or {}, constants or {}, persistent, dropped_attributes)
    for number in range(MOST_OPCODES):
        position, code = source.position, source.read(1)
        if not code:
            raise ValueError(f"byte {position}: the pickle ends without its opcode STOP")
        name = _OPCODES[code].name if code in _OPCODES else f"{code!r} (unknown)"
        try:
            if (name == "PROTO") != (number == 0):
                raise ValueError("a pickle of protocol 2 to 5 starts with PROTO and has it once")
            argument = source.argument(code, name)
            if name == "STOP":
                return machine.result()
            machine.run(name, argument)
        except ValueError as error:
            kind = ForbiddenName if isinstance(error, ForbiddenName) else ValueError
            raise kind(f"byte {position}, opcode {name}: {error}") from error
    raise ValueError(f"the pickle has more than the {MOST_OPCODES} opcodes that are allowed")


def describe(value: Any) -> str:
    """A value for a message: short texts and numbers as they are, and of anything else only its type."""
    if isinstance(value, str | bytes):
        return repr(value[:100])
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__


class _Source:
    """The bytes of one pickle, not more of them than are allowed."""

    def __init__(self, stream: io.BufferedIOBase):
        self._stream, self._left = stream, MOST_BYTES
        self.position = stream.tell()

    def read(self, count: int) -> bytes:
        # Before it is read: a file object sets memory aside for all that it is asked for.
        if count > self._left:
            raise ValueError(f"it claims {count} more bytes; a pickle may have {MOST_BYTES} in all")
        data = self._stream.read(count)
        self._left -= len(data)
        self.position += len(data)
        return data

    def argument(self, code: bytes, name: str) -> Any:
        """What stands behind an opcode, by the reader of `pickletools` unless it is a name or not read at all."""
        if name in ("GLOBAL", "INST"):
            return f"{self._line()}.{self._line()}"
        if name not in _SUPPORTED:
            raise ValueError("it is none of those that are read here")
        argument = _OPCODES[code].arg
        return None if argument is None else argument.reader(cast(IO[bytes], self))

    def _line(self) -> str:
        line = self._stream.readline(min(_LONGEST_NAME_BYTES, self._left))
        self._left -= len(line)
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise ValueError(f"a name is cut off, or longer than {_LONGEST_NAME_BYTES} bytes")
        return line[:-1].decode()


class _Machine:
    """The stack, its marks and the memo; each opcode a change of them."""

    def __init__(self, calls: Mapping, constants: Mapping, persistent: Callable | None, dropped: tuple[str, ...]):
        self._calls, self._constants, self._persistent, self._dropped = calls, constants, persistent, dropped
        self._stack: list[Any] = []
        self._marks: list[int] = []
        # A dict, since an index may be four billion.
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if self._marks or len(self._stack) != 1:
            raise ValueError(f"{len(self._stack)} values and {len(self._marks)} marks are left; one value must be")
        return self._stack[0]

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _SMALL_TUPLES:
            self._stack.append(tuple(self._pop(_SMALL_TUPLES[name])))
        elif name in _PUTS:
            self._memo[argument] = self._top()
        elif name in _GETS:
            if argument not in self._memo:
                raise ValueError(f"nothing was stored as {argument}")
            self._stack.append(self._memo[argument])
        else:
            _OTHERS[name](self, argument)

    def _top(self) -> Any:
        self._stack.append(*self._pop(1))
        return self._stack[-1]

    def _pop(self, count: int) -> list[Any]:
        """The uppermost values, none of them below the last mark."""
        start = len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise ValueError(f"needs {count} values on the stack, and there are fewer")
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _pop_to_mark(self, _: Any = None) -> list[Any]:
        if not self._marks:
            raise ValueError("there is no mark on the stack")
        values = self._pop(len(self._stack) - self._marks[-1])
        self._marks.pop()
        return values

    def _protocol(self, number: int) -> None:
        if not 2 <= number <= NEWEST_PROTOCOL:
            raise ValueError(f"protocol {number}; allowed are 2 to {NEWEST_PROTOCOL}")

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise ValueError(f"appends to {describe(target)}, which is no list")
        target += values

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict:
            raise ValueError(f"sets items of {describe(target)}, which is no dict")
        if len(items) % 2:
            raise ValueError("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)

    def _global(self, name: str) -> None:
        if name in self._calls:
            self._stack.append(_Function(name, self._calls[name]))
        elif name in self._constants:
            self._stack.append(self._constants[name])
        else:
            raise ForbiddenName(f"it asks for {name}, which is none of the names that are allowed")

    def _stack_global(self, _: None) -> None:
        module, name = self._pop(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError(f"a name must be two texts, found {describe(module)} and {describe(name)}")
        self._global(f"{module}.{name}")

    def _instance(self, name: str) -> None:
        raise ForbiddenName(f"it makes an instance of {name}")

    def _reduce(self, _: None) -> None:
        function, arguments = self._pop(2)
        if type(function) is not _Function or type(arguments) is not tuple:
            raise ValueError(f"calls {describe(function)} with {describe(arguments)}; allowed: a function, a tuple")
        try:
            self._stack.append(function.call(arguments))
        except ValueError as error:
            raise ValueError(f"{function.name}: {error}") from error

    def _build(self, _: None) -> None:
        (attributes,) = self._pop(1)
        target = self._top()
        if type(target) is not dict or type(attributes) is not dict:
            raise ValueError(f"sets the state of {describe(target)} to {describe(attributes)}; allowed are dicts")
        for name in attributes:
            if name not in self._dropped:
                raise ValueError(f"sets the attribute {describe(name)}; allowed: {', '.join(self._dropped) or 'none'}")

    def _persistent_id(self, _: None) -> None:
        (value,) = self._pop(1)
        if self._persistent is None:
            raise ValueError("persistent ids have no meaning here")
        self._stack.append(self._persistent(value))


def set_item(target: dict, key: Any, value: Any) -> None:
    """Sets a new item of a dict; ValueError if the key is there already, or no text or whole number of 64 bits."""
    # The hash of anything that holds other values may recurse until the interpreter crashes.
    if not isinstance(key, str) and not (isinstance(key, int) and -_LARGEST_KEY <= key < _LARGEST_KEY):
        raise ValueError(f"a key is {describe(key)}; allowed are texts and whole numbers of 64 bits")
    if key in target:
        raise ValueError(f"the key {describe(key)} occurs twice")
    target[key] = value


_OTHERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._protocol,
    "FRAME": lambda machine, length: None,
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "MARK": lambda machine, _: machine._marks.append(len(machine._stack)),
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._pop_to_mark())),
    "MEMOIZE": lambda machine, _: machine._memo.__setitem__(len(machine._memo), machine._top()),
    "APPEND": lambda machine, _: machine._append(machine._pop(1)),
    "APPENDS": lambda machine, _: machine._append(machine._pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items(machine._pop(2)),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_to_mark()),
    "GLOBAL": _Machine._global,
    "INST": _Machine._instance,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
}
_SUPPORTED = {*_VALUES, *_CONSTANTS, *_SMALL_TUPLES, *_PUTS, *_GETS, *_OTHERS, "STOP"}
