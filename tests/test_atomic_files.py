"""A file is written whole or not at all, whoever writes beside it, and nobody else's file is touched."""

import os

import pytest

from resnet_jax.atomic_files import check_new_file, open_atomically, unfinished_path, write_text_atomically


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_there_whole_after_the_block_and_not_before(tmp_path):
    path = tmp_path / "new" / "net"
    with open_atomically(path) as file:
        file.write(b"new")
        [unfinished] = path.parent.iterdir()
        assert unfinished.name.startswith("net.") and unfinished.name.endswith(".unfinished")
    assert content(path.parent) == {"net": b"new"}


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    write_text_atomically(tmp_path / "net", "old")
    with pytest.raises(OSError, match="disk full"), open_atomically(tmp_path / "net") as file:
        file.write(b"new")
        raise OSError("disk full")
    assert content(tmp_path) == {"net": b"old"}


def test_of_two_writers_at_once_the_last_has_it_whole(tmp_path):
    path = tmp_path / "net"
    with open_atomically(path) as first:
        first.write(b"1" * 10)
        with open_atomically(path) as second:
            second.write(b"2")
        assert path.read_bytes() == b"2"
    assert content(tmp_path) == {"net": b"1" * 10}


def test_nobody_else_s_unfinished_file_is_touched_and_no_link_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "net.unfinished").write_bytes(b"mine")
    write_text_atomically(tmp_path / "net", "new")
    # Even where the random name is guessed.
    guess = tmp_path / "net.guess.unfinished"
    guess.symlink_to(tmp_path / "victim")
    monkeypatch.setattr("secrets.token_hex", lambda count: "guess")
    assert unfinished_path(tmp_path / "net") == guess
    with pytest.raises(FileExistsError):
        write_text_atomically(tmp_path / "net", "newer")
    assert guess.is_symlink()
    guess.unlink()
    assert content(tmp_path) == {"victim": b"mine", "net.unfinished": b"mine", "net": b"new"}


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_file_has_the_permissions_of_any_other(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text_atomically(tmp_path / "net", "x")
        (tmp_path / "other").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "net").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_is_there_is_named_with_the_way_to_replace_it(tmp_path):
    check_new_file(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").symlink_to("nothing")
    with pytest.raises(FileExistsError, match=r"/b is there already; overwrite=True \(--overwrite\) replaces it"):
        check_new_file(tmp_path / "a", tmp_path / "b")
