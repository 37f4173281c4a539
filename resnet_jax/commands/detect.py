"""resnet-jax detect."""

import argparse
import json

from resnet_jax.commands.flags import checkpoint, checkpoint_flag, json_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    help = "folder of the run that trained the detector; repeated, an ensemble"
    parser.add_argument("--workdir", action="append", default=[], metavar="DIR", help=help)
    help = "folder that gets a picture with boxes of each image, and detections.json (%(default)s)"
    parser.add_argument("--output", default="detections", metavar="DIR", help=help)
    help = "least probability of what is drawn and written (%(default)s)"
    parser.add_argument("--score", type=float, default=0.5, metavar="P", help=help)
    checkpoint_flag(parser)
    json_flag(parser)


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    if not flags.workdir:
        raise ValueError("the flag --workdir is needed")
    from resnet_jax.compiled_programs import keep_compiled_programs
    from resnet_jax.detection.detect_files import detect_files

    keep_compiled_programs()
    options = {"changes": flags.overrides, "checkpoint": checkpoint(flags.checkpoint), "score": flags.score}
    found = detect_files(flags.images, flags.workdir, flags.output, **options)
    for entry in found:
        # A file's name need not be text.
        print(_line(entry, as_json=flags.json).encode(errors="backslashreplace").decode())
    if unread := sum("error" in entry for entry in found):
        raise ValueError(f"{unread} of {len(found)} images could not be read")


def _line(entry: dict, *, as_json: bool) -> str:
    if as_json:
        return json.dumps(entry)
    if "error" in entry:
        return f"{entry['image']}: {entry['error']}"
    names = [f"{each['class']} {each['score']:.2f}" for each in entry["detections"]]
    return f"{entry['image']}: {', '.join(names) or 'nothing'}"
