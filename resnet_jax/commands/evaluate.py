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
    help = "of detectors: a file that gets the detections in COCO's form for results"
    parser.add_argument("--results", metavar="FILE", help=help)
    parser.add_argument("--recall", action="store_true", help="of detectors: of the proposals, too")
    json_flag(parser)


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    if not flags.workdir and not flags.weights and not flags.scores:
        raise ValueError("the flag --workdir is needed, or --weights or --scores")
    from resnet_jax.compiled_programs import keep_compiled_programs
    from resnet_jax.config_files import load_config
    from resnet_jax.evaluation.run import evaluate
    from resnet_jax.workdir import Workdir

    keep_compiled_programs()
    # Where there is no run, the test itself says so.
    runs = [files for files in map(Workdir, flags.workdir) if files.config.is_file()]
    if any(files.read_config().task == "detection" for files in runs):
        _evaluate_detectors(flags)
        return
    if flags.overrides or flags.results or flags.recall:
        raise ValueError("--config.KEY=VALUE, --results and --recall are for detectors alone")
    other = ("workdir", "checkpoint", "config", "json", "results", "recall", "overrides", "words")
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


# Flags that mean nothing to a detector.
_OF_NETS = ("weights", "config", "scores", "average", "scales", "split", "save_scores", "recompute_statistics")


def _evaluate_detectors(flags: argparse.Namespace) -> None:
    from resnet_jax.detection.run import evaluate_detectors

    given = [f"--{name}" for name in _OF_NETS if getattr(flags, name) not in (None, [], 0, "probabilities")]
    if given or flags.protocol != "center":
        given += ["--protocol"] if flags.protocol != "center" else []
        raise ValueError(f"{', '.join(given)}: not for a detector, whose test is said by --config.evaluate.KEY=VALUE")
    short = {"data.data_dir": flags.data_dir, "evaluate.batch_size": flags.batch_size, "data.workers": flags.workers}
    changes = {**flags.overrides, **{key: value for key, value in short.items() if value is not None}}
    options = {"changes": changes, "checkpoint": checkpoint(flags.checkpoint), "results": flags.results}
    options |= {"recall": flags.recall}
    result = evaluate_detectors(flags.workdir, **options)
    if flags.json:
        print(json.dumps(result if "ensemble" in result else result["members"][0]))
        return
    for entry in [*result["members"], *([result["ensemble"]] if "ensemble" in result else [])]:
        for name, value in entry.items():
            for label, number in value.items() if isinstance(value, dict) else [("", value)]:
                text = percent(number) if name.startswith(("error", "ap", "ar_")) or "recall" in label else number
                print(f"{name}{label and f' {label}'}: {text}")


def _ensemble_table(entries: list[dict]) -> str:
    """One line for each member and the ensemble, the last."""
    width = max(len(entry["member"]) for entry in entries)
    lines = [f"{'':{width}}    top-1    top-5   count  protocol"]
    for entry in entries:
        errors = f"{percent(entry['error_top1']):>8} {percent(entry['error_top5']):>8}"
        lines.append(f"{entry['member']:{width}} {errors} {entry['count']:>7}  {entry['protocol']}")
    return "\n".join(lines)
