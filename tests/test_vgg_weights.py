"""torchvision's VGG-16 becomes trunk and tail of a detector: the same layers, the same order of fc6's inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from resnet_jax.detection import vgg_weights
from resnet_jax.detection.backbones import VggTail, VggTrunk
from resnet_jax.detection.vgg_weights import load_vgg16, rows_last

# The convolutions of torchvision's `vgg16().features`, with their filters, as its documentation prints them.
CONVOLUTIONS = {
    **{0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)},
    **{17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)},
}


@pytest.fixture(scope="module")
def tensors():
    """All but the classifier's own size, which is a few outputs here."""
    random, found = np.random.default_rng(0), {}
    for index, (inputs, outputs) in CONVOLUTIONS.items():
        found[f"features.{index}.weight"] = random.normal(0, 0.05, (outputs, inputs, 3, 3)).astype(np.float32)
        found[f"features.{index}.bias"] = random.normal(0, 0.1, outputs).astype(np.float32)
    found["classifier.0.weight"] = random.normal(size=(6, 512 * 49)).astype(np.float32)
    found["classifier.3.weight"] = random.normal(size=(5, 6)).astype(np.float32)
    return {**found, "classifier.0.bias": np.zeros(6, np.float32), "classifier.3.bias": np.ones(5, np.float32)}


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file(tensors, path)
    return path


def test_the_trunk_computes_what_torchvision_s_layers_do(path, tensors):
    trunk, _, input = load_vgg16(path)
    shapes = jax.eval_shape(VggTrunk().init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.full((1, 2), 16))
    assert jax.tree.map(np.shape, trunk) == jax.tree.map(lambda leaf: leaf.shape, dict(shapes["params"]))
    image = np.random.default_rng(1).normal(size=(1, 16, 16, 3)).astype(np.float32)
    found = VggTrunk().apply({"params": trunk}, jnp.asarray(image), jnp.full((1, 2), 16))
    x = jnp.asarray(image.transpose(0, 3, 1, 2))
    for index in CONVOLUTIONS:
        # In PyTorch's order of axes; a maximum comes before each stage but the first.
        if index in (5, 10, 17, 24):
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        kernel, bias = (tensors[f"features.{index}.{name}"] for name in ("weight", "bias"))
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = jax.nn.relu(x + bias.reshape(1, -1, 1, 1))
    np.testing.assert_allclose(found, x.transpose(0, 2, 3, 1), rtol=1e-3, atol=1e-4)
    assert input.mean.shape == input.std.shape == (3,) and 100 < input.mean.min() and 50 < input.std.min()


def test_fc6_sees_each_input_where_it_was(path, tensors):
    _, tail, _ = load_vgg16(path)
    regions = np.random.default_rng(2).normal(size=(3, 7, 7, 512)).astype(np.float32)
    theirs = regions.transpose(0, 3, 1, 2).reshape(3, -1) @ tensors["classifier.0.weight"].T
    np.testing.assert_allclose(regions.reshape(3, -1) @ tail["fc6"]["kernel"], theirs, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(tail["fc7"]["kernel"], tensors["classifier.3.weight"].T)
    assert set(tail) == set(jax.eval_shape(_init_tail)["params"])


def _init_tail():
    return VggTail().init(jax.random.key(0), jnp.zeros((1, 7, 7, 512)), train=False)


def test_what_is_no_vgg16_is_refused(tensors, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_vgg16(tmp_path / "nothing")
    save_file({"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is not torchvision's vgg16: it has no features.0.weight of 4 dimensions"):
        load_vgg16(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no square of 512 channels"):
        rows_last(np.zeros((512 * 48, 2), np.float32), channels=512)
    assert len(vgg_weights._CONVOLUTIONS) == len(CONVOLUTIONS)
