"""resnet-jax convert."""

import argparse
from pathlib import Path

from resnet_jax.commands.flags import checkpoint, checkpoint_flag, workdir_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "weight file or folder, or a name of the catalogue; left out with --workdir"
    parser.add_argument("source", nargs="?", metavar="IN", help=help)
    parser.add_argument("output", metavar="OUT", help="NAME.safetensors; a new folder for timm and huggingface")
    workdir_flag(parser)
    checkpoint_flag(parser)
    help = "what IN is: resnet_jax, torchvision, timm, huggingface, cifar_th or msra (as its content shows)"
    parser.add_argument("--from", dest="format", metavar="FORMAT", help=help)
    help = "resnet_jax, torchvision, timm or huggingface (%(default)s)"
    parser.add_argument("--to", default="resnet_jax", metavar="FORMAT", help=help)
    help = "layer of a bottleneck with the stride, 1x1 or 3x3, which no state dict says (3x3)"
    parser.add_argument("--stride_in", metavar="CONVOLUTION", help=help)
    help = "of the input, in pixels from 0 to 255, or a mean image as .binaryproto"
    parser.add_argument("--mean", type=_mean, metavar="R,G,B|FILE", help=help)
    parser.add_argument("--std", type=_floats, metavar="R,G,B", help="of the input, likewise")
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="side of the crop that the net sees")
    parser.add_argument("--short_side", type=int, metavar="PIXELS", help="of the image before it is cropped")
    parser.add_argument("--resize", metavar="HOW", help="area, bilinear, pillow_bilinear or pillow_bicubic")
    parser.add_argument("--class_names", metavar="FILE", help="a line for each class")
    parser.add_argument("--name", metavar="NAME", help="what the net is called (as its layers say)")
    parser.add_argument("--license", metavar="TERMS", help="on what terms the parameters may be used")
    parser.add_argument("--overwrite", action="store_true", help="replace the file OUT; it may be IN itself")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    if (flags.source is None) == (flags.workdir is None):
        raise ValueError("convert needs one net: IN, or --workdir=DIR, and then OUT")
    from resnet_jax.pretrained.convert import convert

    other = ("source", "output", "workdir", "checkpoint", "class_names")
    given = {name: value for name, value in vars(flags).items() if name not in other}
    if flags.class_names is not None:
        given["class_names"] = Path(flags.class_names).read_text(encoding="utf-8").splitlines()
    source = flags.source
    if flags.workdir is not None:
        from resnet_jax.evaluation.trained_net import load_net

        source = load_net(workdir=flags.workdir, checkpoint=checkpoint(flags.checkpoint))
    file = convert(source, flags.output, **given)
    view = "the input is not described" if file.input is None else file.input.summary()
    print(f"{file.name or 'a net'} with {file.model.num_classes or 'no'} classes; {view}; see {flags.output}")


def _mean(text: str) -> tuple[float, ...] | str:
    return text if text.endswith(".binaryproto") else _floats(text)


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 123.7,116.3,103.5") from None
