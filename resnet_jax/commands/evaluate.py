"""resnet-jax evaluate."""

import argparse
import json

from resnet_jax.commands.flags import checkpoint, checkpoint_flag, json_flag, numbers, percent


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "the run's folder; repeated, an ensemble"
    parser.add_argument("--workdir", action="append", default=[], metavar="DIR", help=help)
    help = "a weight file, folder or name, one more net; may be repeated"
    parser.add_argument("--weights", action="append", default=[], metavar="FILE", help=help)
    help = "says on what data to test weight files (the first workdir's)"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    help = "a file of --save_scores, one more of the ensemble; may be repeated"
    parser.add_argument("--scores", action="append", default=[], metavar="FILE", help=help)
    help = "how an image is tested: center, ten_crop, multi_scale (%(default)s)"
    parser.add_argument("--protocol", default="center", metavar="NAME", help=help)
    help = "of ten_crop and multi_scale: probabilities or logits (%(default)s)"
    parser.add_argument("--average", default="probabilities", metavar="WHAT", help=help)
    help = "of multi_scale, shorter sides in pixels (the paper's: 224,256,384,480,640)"
    parser.add_argument("--scales", type=numbers, metavar="N,N,...", help=help)
    checkpoint_flag(parser)
    parser.add_argument("--split", help="in TFDS's syntax (the config's test split)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of TFDS data sets (the config's)")
    help = "keep the scores of every image: NAME.npz, or a folder for several workdirs"
    parser.add_argument("--save_scores", metavar="PATH", help=help)
    parser.add_argument("--batch_size", type=int, metavar="N", help="images of one step (the config's)")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (the config's)")
    help = "average batch-norm statistics over this many training batches first (%(default)s)"
    parser.add_argument("--recompute_statistics", type=int, default=0, metavar="BATCHES", help=help)
    json_flag(parser)


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    if not flags.workdir and not flags.weights and not flags.scores:
        raise ValueError("the flag --workdir is needed, or --weights or --scores")
    from resnet_jax.compiled_programs import keep_compiled_programs
    from resnet_jax.config_files import load_config
    from resnet_jax.evaluation.run import evaluate

    keep_compiled_programs()
    other = ("workdir", "checkpoint", "config", "json")
    given = {name: value for name, value in vars(flags).items() if name not in other}
    config = None if flags.config is None else load_config(flags.config)
    result = evaluate(flags.workdir, config=config, checkpoint=checkpoint(flags.checkpoint), **given)
    members = result["members"]
    if flags.json:
        print(json.dumps(result if "ensemble" in result else members[0]))
    elif "ensemble" in result:
        print(_ensemble_table([*members, result["ensemble"]]))
    else:
        for name, value in members[0].items():
            print(f"{name}: {percent(value) if name.startswith('error') else value}")


def _ensemble_table(entries: list[dict]) -> str:
    """One line for each member and the ensemble, the last."""
    width = max(len(entry["member"]) for entry in entries)
    lines = [f"{'':{width}}    top-1    top-5   count  protocol"]
    for entry in entries:
        errors = f"{percent(entry['error_top1']):>8} {percent(entry['error_top5']):>8}"
        lines.append(f"{entry['member']:{width}} {errors} {entry['count']:>7}  {entry['protocol']}")
    return "\n".join(lines)
