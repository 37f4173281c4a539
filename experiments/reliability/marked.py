"""The parts of a README that a script writes, between two marks."""

from pathlib import Path

from resnet_jax.atomic_files import write_text_atomically


def publish(readme: Path, script: str, text: str) -> None:
    """Puts a text between the marks that name the script; ValueError if they are not there."""
    begin, end = f"<!-- tables: made by {script} -->", "<!-- end of tables -->"
    before, mark, rest = readme.read_text().partition(begin)
    _, other, after = rest.partition(end)
    if not (mark and other):
        raise ValueError(f"{readme} has no lines {begin!r} and {end!r} to put the tables between")
    write_text_atomically(readme, f"{before}{begin}\n\n{text}\n\n{end}{after}")
