"""The loss along the line from a net's start to its end, and on a plane of random directions through the end."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from resnet_jax.config import resolve
from resnet_jax.diagnostics.landscape import between, filter_normalized_direction, make_landscape
from resnet_jax.diagnostics.loss import make_loss
from resnet_jax.diagnostics.probe import load_probe
from resnet_jax.distributed import data_mesh
from resnet_jax.environment import environment
from resnet_jax.evaluation.trained_net import TrainedNet
from resnet_jax.models.registry import initialize
from resnet_jax.random_keys import named_key
from resnet_jax.workdir import Workdir
from resnet_jax.xla_options import backend_options

HERE = Path(__file__).parent
# 0 is the start and 1 the end of training; the plane's unit is the length of each filter.
LINE = (-0.25, 1.5)
PLANE = (-1.0, 1.0)


def measure_all(workdirs: Sequence[Path], output: Path, *, points: int) -> None:
    """Writes the losses around the ends of runs, one a net, and what they were computed with."""
    nets = {}
    for workdir in workdirs:
        net = TrainedNet.restore(Workdir(workdir), checkpoint="latest", mesh=data_mesh(jax.devices()[:1]))
        nets[net.config.model.name] = _measure(net, points=points)
    output.write_text(json.dumps({**environment(), "nets": nets}, indent=1) + "\n")


def _measure(net: TrainedNet, *, points: int) -> dict[str, Any]:
    config = net.config
    steps = config.steps
    resolved = resolve(config, train_examples=steps.train_examples, device_count=1)
    images, labels = load_probe(resolved, net.input, data_mesh(jax.devices()[:1]))
    loss = make_loss(net.model, loss=config.train.loss, label_smoothing=config.train.label_smoothing)
    landscape = make_landscape(loss, compiler_options=backend_options())
    end = net.variables["params"]
    start = initialize(net.model, named_key(config.seed, "parameters"), net.input.image_shape)["params"]
    rest = net.variables["batch_stats"], images, labels
    line, plane = np.linspace(*LINE, 4 * points), np.linspace(*PLANE, points)
    directions = [filter_normalized_direction(jax.random.key(number), end) for number in (0, 1)]
    return {
        "images": len(labels),
        "seed": config.seed,
        "line": {
            "positions": list(line),
            "losses": _kept(landscape(start, [between(start, end)], [line], *rest)[:, 0]),
        },
        "plane": {"positions": list(plane), "losses": _kept(landscape(end, directions, [plane, plane], *rest))},
    }


def _kept(losses: np.ndarray) -> list:
    """With six digits; None where the loss is not finite, which JSON has no word for."""
    return (
        [_kept(row) for row in losses]
        if losses.ndim > 1
        else [float(f"{value:.6g}") if np.isfinite(value) else None for value in losses]
    )


def draw(stored: Path, output: Path) -> None:
    """Draws what `measure_all` wrote: the lines of all nets, and a plane a net on one scale of colours."""
    nets = json.loads(stored.read_text())["nets"]
    figure = Figure(figsize=(3.4 * (len(nets) + 1), 3.2), dpi=110, layout="constrained")
    along, *across = figure.subplots(1, len(nets) + 1)
    planes = {name: np.array(net["plane"]["losses"], float) for name, net in nets.items()}
    logs = {name: np.log10(plane) for name, plane in planes.items()}
    limits = {"vmin": min(map(np.nanmin, logs.values())), "vmax": max(map(np.nanmax, logs.values()))}
    colours: dict[str, str] = {}
    picture = None
    for axes, (name, net) in zip(across, nets.items(), strict=True):
        colour = colours.setdefault(name.replace("plain", "").replace("resnet", ""), f"C{len(colours)}")
        style = "--" if "plain" in name else "-"
        along.plot(net["line"]["positions"], np.array(net["line"]["losses"], float), style, color=colour, label=name)
        positions = net["plane"]["positions"]
        picture = axes.contourf(positions, positions, logs[name], levels=np.linspace(*limits.values(), 15))
        axes.set_title(name, fontsize="medium")
        axes.set_aspect("equal")
    along.set_yscale("log")
    along.set_xlabel("from start (0) to end (1) of training")
    along.set_ylabel("loss")
    along.legend(frameon=False, fontsize="small")
    figure.colorbar(picture, ax=across, label="log10 of the loss")
    figure.savefig(output)


if __name__ == "__main__":
    draw(HERE / "landscape.json", HERE / "landscape.png")
