"""Pickles are read without running what they ask for: plain values come out, all else is refused by name."""

import io
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict

import pytest
from torch_files import call, name, number, pickled, row, text

from resnet_jax.pretrained.pytorch import safe_pickle
from resnet_jax.pretrained.pytorch.safe_pickle import ForbiddenName, load

TWICE = {"math.twice": lambda arguments: arguments * 2}
PLAIN = [
    *(None, True, False, 0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**63, -(2**100), 0.1, -0.0, float("inf")),
    *("", "text", "später 💡", "x" * 300, b"", b"bytes", b"x" * 70_000),
    *([], [1], list(range(3000)), (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), tuple(range(3000))),
    *({}, {"a": 1}, {number: str(number) for number in range(3000)}, {"a": [{"b": (None, {"c": [1.5]})}]}),
]


def read(data: bytes, **settings):
    return load(io.BytesIO(data), **settings)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_plain_values_are_those_that_python_reads(value, protocol):
    if isinstance(value, bytes) and protocol == 2:
        # It has no bytes: Python writes a call.
        with pytest.raises(ForbiddenName, match="__builtin__.bytes|_codecs.encode"):
            read(pickle.dumps(value, protocol))
        return
    found = read(pickle.dumps(value, protocol))
    assert found == value and type(found) is type(value)


def test_texts_of_python_2_are_read():
    assert read(b"\x80\x02U\x03abcT\x02\x00\x00\x00de\x86.") == ("abc", "de")


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(b"before" + pickle.dumps([1]) + pickle.dumps("two") + b"after")
    stream.seek(6)
    assert load(stream) == [1] and load(stream) == "two" and stream.read() == b"after"


def test_what_is_shared_stays_shared():
    shared = [1]
    found = read(pickle.dumps({"a": shared, "b": shared}))
    assert found["a"] is found["b"]


def test_named_functions_and_constants_are_what_the_reader_says():
    body = b"](" + call("math.twice", number(1)) + name("math.one") + b"e"
    assert read(pickled(body), calls=TWICE, constants={"math.one": 1}) == [(1, 1), 1]
    stacked = pickled(text("math") + text("twice") + b"\x93" + row(number(3)) + b"R")
    assert read(stacked, calls=TWICE) == (3, 3)
    assert read(pickled(row(text("id"), number(1)) + b"Q"), persistent=lambda value: [value]) == [("id", 1)]


def test_an_attribute_is_dropped_only_where_the_reader_says():
    value = OrderedDict(a=1)
    value._metadata = {"version": 1}
    calls = {"collections.OrderedDict": lambda arguments: {}}
    assert read(pickle.dumps(value, 2), calls=calls, dropped_attributes=("_metadata",)) == {"a": 1}
    with pytest.raises(ValueError, match="opcode BUILD: sets the attribute '_metadata'; allowed: none"):
        read(pickle.dumps(value, 2), calls=calls)


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class WithState:
    def __setstate__(self, state):
        raise AssertionError("it was called")

    def __getstate__(self):
        return {"a": 1}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value, forbidden",
    [
        (Evil(os.system, ("true",)), "(posix|nt).system"),
        (Evil(eval, ("1",)), "eval"),
        (Evil(exec, ("1",)), "exec"),
        (Evil(getattr, (1, "real")), "getattr"),
        (Evil(subprocess.Popen, (["true"],)), "(subprocess|commands).Popen"),
        ({"state_dict": [Evil(os.remove, ("x",))]}, "(posix|nt).remove"),
        (os.system, "(posix|nt).system"),
        (WithState(), "WithState"),
        ({1, 2}, "set|EMPTY_SET"),
        (1j, "(builtins|__builtin__).complex"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (range(3), "range"),
        (threading.Event, "threading.Event"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_functions_and_classes_are_refused_by_name(value, forbidden, protocol):
    with pytest.raises(ValueError, match=rf"byte \d+, opcode \w+: .*({forbidden})|opcode ({forbidden})"):
        read(pickle.dumps(value, protocol), calls=TWICE)


def test_a_name_is_refused_when_it_is_spoken_of_and_not_only_when_called():
    with pytest.raises(ForbiddenName, match="byte 2, opcode GLOBAL: it asks for os.system, which is none"):
        read(pickled(name("os.system")))
    with pytest.raises(ForbiddenName, match="byte 2, opcode INST: it makes an instance of os.system"):
        read(b"\x80\x02ios\nsystem\n.")
    for dotted in (text("math") + text("twice.__globals__"), text("math.twice") + text("__globals__")):
        with pytest.raises(ForbiddenName, match="asks for math.twice.__globals__"):
            read(pickled(dotted + b"\x93"), calls=TWICE)


def test_what_a_payload_would_do_is_not_done(tmp_path):
    made = tmp_path / "made"
    for protocol in range(2, 6):
        data = pickle.dumps([1, Evil(os.mkdir, (str(made),))], protocol)
        with pytest.raises(ForbiddenName):
            read(data, calls=TWICE)
        assert not made.exists()
    pickle.loads(data)
    assert made.exists(), "the payload does nothing, so that the test shows nothing"


BROKEN = {
    "empty": (b"", "byte 0: the pickle ends without its opcode STOP"),
    "protocol 0": (pickle.dumps([1], 0), "protocol 2 to 5 starts with PROTO"),
    "protocol 6": (b"\x80\x06N.", "protocol 6; allowed are 2 to 5"),
    "protocol twice": (pickled(b"\x80\x02N"), "has it once"),
    "no stop": (b"\x80\x02N", "byte 3: the pickle ends without its opcode STOP"),
    "nothing left": (pickled(b""), "opcode STOP: 0 values and 0 marks are left"),
    "two left": (pickled(b"NN"), "opcode STOP: 2 values"),
    "mark left": (pickled(b"N("), "opcode STOP: 1 values and 1 marks"),
    "unknown opcode": (pickled(b"\xff"), r"byte 2, opcode b'\\xff' .unknown.: it is none of those"),
    "unset memo": (pickled(b"h\x05"), "opcode BINGET: nothing was stored as 5"),
    "memo of four billion unset": (pickled(b"j\xff\xff\xff\xff"), "nothing was stored as 4294967295"),
    "put of nothing": (pickled(b"q\x00"), "opcode BINPUT: needs 1 values"),
    "tuple of nothing": (pickled(b"N\x86"), "opcode TUPLE2: needs 2 values"),
    "no mark": (pickled(b"Nt"), "opcode TUPLE: there is no mark"),
    "below a mark": (pickled(b"]N(a"), "opcode APPEND: needs 1 values"),
    "append to a tuple": (pickled(b")Na"), "appends to tuple, which is no list"),
    "item of a list": (pickled(b"]NNs"), "sets items of list, which is no dict"),
    "odd items": (pickled(b"}(Nu"), "opcode SETITEMS: a key has no value"),
    "tuple as key": (pickled(b"})Ns"), "a key is tuple; allowed are texts and whole numbers"),
    "none as key": (pickled(b"}NNs"), "a key is None"),
    "long key": (pickled(b"}" + number(2**63) + b"Ns"), "a key is 9223372036854775808"),
    "key twice": (pickled(b"}(" + text("a") + b"N" + text("a") + b"Nu"), "the key 'a' occurs twice"),
    "call of a text": (pickled(text("os.system") + row() + b"R"), "calls 'os.system' with tuple"),
    "call without a tuple": (pickled(name("math.twice") + b"]R"), "calls _Function with list"),
    "state of a tuple": (pickled(b")}b"), "sets the state of tuple to dict"),
    "state of a function": (pickled(name("math.twice") + b"}b"), "sets the state of _Function"),
    "name of numbers": (pickled(b"K\x01K\x02\x93"), "a name must be two texts, found 1 and 2"),
    "persistent id": (pickled(b"NQ"), "persistent ids have no meaning here"),
    "extension": (pickled(b"\x82\x01"), "opcode EXT1: it is none of those"),
    "new object": (pickled(name("math.twice") + b")\x81"), "opcode NEWOBJ: it is none of those"),
    "new object with keywords": (pickled(name("math.twice") + b")}\x92"), "opcode NEWOBJ_EX: it is none"),
    "object": (pickled(b"(" + name("math.twice") + b"o"), "opcode OBJ: it is none"),
    "buffer": (b"\x80\x05\x97.", "opcode NEXT_BUFFER: it is none"),
    "text of protocol 0": (pickled(b"S'\\q'\n"), "opcode STRING: it is none"),
    "number of protocol 0": (pickled(b"I" + b"9" * 10_000 + b"\n"), "opcode INT: it is none"),
    "long long": (pickled(b"\x8b\xff\xff\xff\x7f"), "opcode LONG4: it is none"),
    "bad text": (pickled(b"X\x01\x00\x00\x00\xff"), "opcode BINUNICODE: .*codec can't decode"),
    "bad name": (pickled(b"c\xff\n\xff\n"), "opcode GLOBAL: .*codec can't decode"),
    "endless name": (pickled(b"c" + b"x" * 5000), "opcode GLOBAL: a name is cut off, or longer than 1000 bytes"),
    "escaped name": (pickled(b"cos\\q\nsystem\n"), r"asks for os\\q.system"),
    "negative text": (pickled(b"T\xff\xff\xff\xff"), "opcode BINSTRING: .*byte count < 0"),
    "short text": (pickled(b"X\x05\x00\x00\x00ab"), "opcode BINUNICODE: expected 5 bytes"),
    "text of 8 EiB": (pickled(b"\x8d" + b"\xff" * 7 + b"\x7fab"), "it claims 9223372036854775807 more bytes"),
    "text of 16 EiB": (pickled(b"\x8d" + b"\xff" * 8 + b"ab"), "BINUNICODE8: .*18446744073709551615"),
    "bytes of 4 GiB": (pickled(b"B\xff\xff\xff\xffab"), "it claims 4294967295 more bytes; a pickle may have 16777216"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pickle_is_refused_with_the_place(case):
    data, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        read(data, calls=TWICE)


def test_a_file_on_disk_is_not_asked_for_more_than_a_pickle_may_have(tmp_path):
    """A file object sets memory aside for all that it is asked for, unlike one in memory."""
    path = tmp_path / "file"
    for opcode in (b"\x8d", b"\x8e"):
        path.write_bytes(b"\x80\x04" + opcode + (2**62).to_bytes(8, "little") + b"ab")
        with path.open("rb") as file, pytest.raises(ValueError, match="it claims 4611686018427387904 more bytes"):
            load(file)


def test_every_prefix_of_a_pickle_is_refused():
    data = pickle.dumps({"a": [1, 2.5, ("x", None)], "b": 2**70}, 4)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="byte"):
            read(data[:length])


def test_a_pickle_has_a_largest_size_and_count_of_opcodes(monkeypatch):
    monkeypatch.setattr(safe_pickle, "MOST_OPCODES", 100)
    with pytest.raises(ValueError, match="more than the 100 opcodes"):
        read(pickled(b"(" + b"N" * 100 + b"t"))
    assert len(read(pickled(b"(" + b"N" * 96 + b"t"))) == 96
    monkeypatch.setattr(safe_pickle, "MOST_BYTES", 50)
    with pytest.raises(ValueError, match="claims 47 more bytes; a pickle may have 50"):
        read(pickled(b"U\x2f" + b"x" * 47))
    assert read(pickled(b"U\x2d" + b"x" * 45)) == "x" * 45


def test_what_contains_itself_is_read():
    found = read(pickled(b"]q\x00h\x00a"))
    assert found[0] is found
    found = read(pickled(b"}q\x00" + text("a") + b"h\x00s"))
    assert found["a"] is found


BOMBS = {
    # 2**60 entries, were it looked through.
    "billion laughs": b"(]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 60)) + b"t",
    "nested lists": b"]" * 300_000 + b"a" * 299_999,
    "nested tuples": b")" + b"\x85" * 500_000,
    "nested dicts": b"}" + b"X\x00\x00\x00\x00}" * 150_000 + b"s" * 150_000,
    "memo": b"N" + b"\x94" * 1_000_000,
    "lists": b"(" + b"]" * 1_000_000 + b"t",
    "dicts": b"(" + b"}" * 1_000_000 + b"t",
    # Numbers that all have the same hash: without the limit on keys, hours.
    "hashes": b"}(" + b"".join(number((2**61 - 1) * n) + b"N" for n in range(1, 100_000)) + b"u",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_takes_little_memory_and_time(case):
    script = (
        "import io, resource, sys, time\n"
        "from resnet_jax.pretrained.pytorch.safe_pickle import load\n"
        "data, before = sys.stdin.buffer.read(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    value = load(io.BytesIO(data))\nexcept ValueError as error:\n    print(error)\n"
        "value = None\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=pickled(BOMBS[case]), capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    *refused, grown_mb = done.stdout.decode().splitlines()
    assert int(grown_mb) < 300
    assert len(refused) == (case == "hashes") and all("a key is" in line for line in refused)
