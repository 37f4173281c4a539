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
    help = "a file of --save_scores, one more of the ensemble; of a localizer: its predicted classes; may be repeated"
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
    tasks = {files.read_config().task for files in runs} - {"classification"}
    if tasks:
        {"detection": _evaluate_detectors, "localization": _evaluate_localizers}[min(tasks)](flags)
        return
    if flags.overrides or flags.results or flags.recall:
        raise ValueError(
            "--config.KEY=VALUE is for detectors and localizers, --results and --recall for detectors alone"
        )
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


# Flags that are of nets that classify.
_OF_NETS = ("weights", "config", "average", "scales", "split", "save_scores", "recompute_statistics")


def _evaluate_detectors(flags: argparse.Namespace) -> None:
    from resnet_jax.detection.run import evaluate_detectors

    options = {**_options(flags, "a detector", ("scores",)), "results": flags.results, "recall": flags.recall}
    _print(flags, evaluate_detectors(flags.workdir, **options))


def _evaluate_localizers(flags: argparse.Namespace) -> None:
    from resnet_jax.localization.run import evaluate_localizers

    options = {**_options(flags, "a localizer", ("results", "recall")), "scores": flags.scores}
    _print(flags, evaluate_localizers(flags.workdir, **options))


def _options(flags: argparse.Namespace, what: str, others: tuple[str, ...]) -> dict:
    """What the tests of images with boxes take from the flags; ValueError for flags that mean nothing to them."""
    given = [f"--{name}" for name in (*_OF_NETS, *others) if getattr(flags, name) not in (None, [], 0, "probabilities")]
    given += ["--protocol"] if flags.protocol != "center" else []
    if given:
        raise ValueError(f"{', '.join(given)}: not for {what}, whose test is said by --config.evaluate.KEY=VALUE")
    short = {"data.data_dir": flags.data_dir, "evaluate.batch_size": flags.batch_size, "data.workers": flags.workers}
    changes = {**flags.overrides, **{key: value for key, value in short.items() if value is not None}}
    return {"changes": changes, "checkpoint": checkpoint(flags.checkpoint)}


def _print(flags: argparse.Namespace, result: dict) -> None:
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
