"""A weight file gives back the very net that was saved, and one that is damaged or hostile gives a ValueError."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_variables import random_images, random_variables
from safetensors.numpy import load, save

from resnet_jax.data.input_description import InputDescription
from resnet_jax.models.normalization import freeze_batch_norm
from resnet_jax.models.registry import create_model, initialize
from resnet_jax.models.resnet import ResNet
from resnet_jax.pretrained.layout import variable_shapes
from resnet_jax.pretrained.loading import load_pretrained
from resnet_jax.pretrained.reading import load_weights
from resnet_jax.pretrained.weights import save_pretrained

SHAPE, CLASSES = (6, 8, 3), 5
TINY = {"width": 2, "stage_sizes": (1, 2), "num_classes": CLASSES}
RANDOM = np.random.default_rng(0)
INPUT = InputDescription(
    SHAPE,
    RANDOM.uniform(0, 255, SHAPE).astype(np.float32),
    RANDOM.uniform(1, 99, 3).astype(np.float32),
    ("cat", "dög", "a/../b", "\N{FROG FACE}", ""),
    short_side=8,
    resize="bilinear",
    source="measured",
)
NETS = {
    "cifar": ("cifar_resnet20", {}),
    "imagenet basic": ("resnet18", {"shortcut": "C"}),
    "imagenet bottleneck": ("resnet50_v1_5", {"zero_init_residual": True, "bn_momentum": 0.97}),
    "plain": ("plain34", {}),
    "plain bottleneck": ("plain18", {"block": "bottleneck"}),
    "frozen": ("resnet50", {"norm": "frozen"}),
    "scan": ("cifar_resnet20", {"scan": True, "remat": True, "stage_sizes": (1, 3)}),
    "bfloat16": ("resnet18", {"dtype": jnp.bfloat16}),
    "fixup": ("resnet18", {"norm": "fixup", "stochastic_depth": 0.5}),
    "no head": ("cifar_resnet20", {"num_classes": None}),
    "pre-activation": ("resnet50", {"activation_order": "pre", "dropout_rate": 0.25, "bn_group_size": 4}),
}


def tiny(name="cifar_resnet20", options=None):
    model = create_model(name, **{**TINY, **(options or {})})
    return model, random_variables(model, SHAPE, train=False)


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A file with all there can be in it."""
    model, variables = tiny()
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    return save_pretrained(
        path,
        model,
        variables,
        input=INPUT,
        name="tiny",
        metrics={"error_top1": 0.25, "count": 7},
        source="here",
        license="Apache-2.0",
    )


@pytest.mark.parametrize("net", NETS)
def test_a_net_comes_back_bit_for_bit(tmp_path, net):
    model, variables = tiny(*NETS[net])
    path = save_pretrained(tmp_path / "net.safetensors", model, variables)
    loaded_model, loaded = load_pretrained(path)
    assert loaded_model == model
    assert_same_bits(loaded, variables)
    images = random_images(4, SHAPE)
    logits = [np.asarray(m.apply(v, images, train=False)) for m, v in ((model, variables), (loaded_model, loaded))]
    assert logits[0].tobytes() == logits[1].tobytes()


def test_a_frozen_net_of_a_trained_one_comes_back(tmp_path):
    model, variables = tiny("resnet18")
    frozen = freeze_batch_norm(variables)
    path = save_pretrained(tmp_path / "net.safetensors", model.clone(norm="frozen"), frozen)
    assert_same_bits(load_pretrained(path)[1], frozen)


def test_all_that_is_known_of_a_net_comes_back(saved):
    file = load_weights(saved)
    assert (file.name, file.source, file.license) == ("tiny", "here", "Apache-2.0")
    assert file.metrics == {"error_top1": 0.25, "count": 7}
    assert file.input.same_as(INPUT)
    assert file.input.source == "measured"
    assert file.input.mean.dtype == file.input.std.dtype == np.float32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(file.variables))
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_is_not_known_stays_unknown(tmp_path):
    file = load_weights(save_pretrained(tmp_path / "net.safetensors", *tiny()))
    assert (file.input, file.name, file.metrics, file.source, file.license) == (None, None, {}, None, None)


def test_a_channel_mean_and_grey_images(tmp_path):
    model = create_model("cifar_resnet20", **TINY)
    variables = random_variables(model, (8, 8, 1), train=False)
    input = InputDescription((8, 8, 1), np.float32([3.5]), np.float32([1]), tuple("abcde"))
    file = load_weights(save_pretrained(tmp_path / "net.safetensors", model, variables, input=input))
    assert file.input.same_as(input)
    assert_same_bits(file.variables, variables)
    save_pretrained(tmp_path / "net.safetensors", model, variables)
    assert_same_bits(load_weights(tmp_path / "net.safetensors").variables, variables)


def test_the_file_is_as_readable_as_any_other(tmp_path):
    path = save_pretrained(tmp_path / "net.safetensors", *tiny())
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_the_tensors_are_named_by_their_paths(saved):
    names = set(load(saved.read_bytes()))
    assert {"params/stage1_block1/conv1/kernel", "batch_stats/stem/norm/mean", "input/mean", "input/std"} <= names


def test_values_are_kept_however_they_lie_in_memory_and_whatever_they_are(tmp_path):
    model, variables = tiny()
    kernel = np.asfortranarray(np.asarray(variables["params"]["stem"]["conv"]["kernel"]))
    kernel[0, 0, 0] = np.nan, -np.inf
    variables["params"]["stem"]["conv"]["kernel"] = kernel
    assert_same_bits(load_weights(save_pretrained(tmp_path / "a.safetensors", model, variables)).variables, variables)


@pytest.mark.parametrize("net", ["cifar", "imagenet bottleneck", "no head"])
def test_a_new_head_is_he_initialised_and_all_else_is_kept(tmp_path, net):
    model, variables = tiny(*NETS[net])
    path = save_pretrained(tmp_path / "net.safetensors", model, variables)
    wider, loaded = load_pretrained(path, num_classes=3000)
    assert wider == model.clone(num_classes=3000)
    expected = jax.eval_shape(lambda: initialize(wider, jax.random.key(0), SHAPE))
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, expected)
    head = loaded["params"].pop("classifier")
    assert not head["bias"].any()
    features = len(head["kernel"])
    assert np.std(head["kernel"]) == pytest.approx(np.sqrt(2 / features), rel=0.03)
    variables["params"].pop("classifier", None)
    assert_same_bits(loaded, variables)
    keys = [None, jax.random.key(0), jax.random.key(1)]
    again = [load_pretrained(path, num_classes=3000, key=key)[1]["params"]["classifier"]["kernel"] for key in keys]
    assert [(kernel == head["kernel"]).all() for kernel in again] == [True, True, False]
    with pytest.raises(ValueError, match="net.num_classes=0 must be a whole number, at least 1"):
        load_pretrained(path, num_classes=0)


def other_input(**changes):
    return {"input": dataclasses.replace(INPUT, **changes)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (other_input(class_names=("a", "b")), "input.class_names are 2, the net has 5 classes"),
        (other_input(mean=INPUT.mean[:1]), r"input.mean_shape=\[1, 8, 3\] must be \[6, 8, 3\] or \[3\]"),
        (other_input(mean=INPUT.mean.astype(np.float64)), r"input/mean is float64 .* needs float32"),
        (other_input(std=np.float32([1, 2])), r"input/std is float32 of shape \(2,\); .*\(3,\)"),
        (other_input(std=np.float32([1, 0, 1])), "input/std must be finite and above 0"),
        (other_input(mean=np.float32([1, 0, np.nan])), "input/mean must be finite"),
        (other_input(short_side=0), "input.short_side=0 must be"),
        (other_input(resize="cubic"), "resize='cubic'; allowed: area, bilinear, pillow_bilinear, pillow_bicubic"),
        (other_input(image_shape=(6, 8, 1), mean=INPUT.mean[..., :1], std=INPUT.std[:1]), "params/stem/conv/kernel"),
        ({"metrics": {"error": float("nan")}}, "metrics: error=nan must be a finite number"),
        ({"metrics": {"protocol": "center"}}, "metrics: protocol='center' must be"),
        ({"metrics": {"protocol": [1, 2]}}, r"metrics: protocol=\[1, 2\] must be"),
        ({"license": "x" * (1 << 23)}, "the description has .* characters; allowed are 4194304"),
    ],
)
def test_nothing_is_written_that_could_not_be_read(tmp_path, options, message):
    path = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match=rf"net.safetensors was not written: .*{message}"):
        save_pretrained(path, *tiny(), **options)
    assert list(tmp_path.iterdir()) == []


def test_variables_of_another_net_are_not_written(tmp_path):
    model, variables = tiny()
    for net, tensor in (("imagenet basic", "batch_stats/stage1_block1/shortcut"), ("frozen", "batch_stats/stage1")):
        with pytest.raises(ValueError, match=f"was not written: tensor {tensor}.* (is missing|of shape)"):
            save_pretrained(tmp_path / "net.safetensors", tiny(*NETS[net])[0], variables)
    with pytest.raises(ValueError, match="tensor 'cache/x' is none that the net has"):
        save_pretrained(tmp_path / "net.safetensors", model, {**variables, "cache": {"x": jnp.zeros(3)}})
    with pytest.raises(ValueError, match="NAME.safetensors, found 'net.npz'"):
        save_pretrained(tmp_path / "net.npz", model, variables)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_pretrained(tmp_path / "net.safetensors", *tiny(), name="old")
    content = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(path, *tiny(), name="new")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def split(content):
    """The header's object, the document in it, and the tensors' bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["resnet_jax"]), content[8 + length :]


def join(header, document, data):
    """The inverse of `split`; a document that is a string stands as it is."""
    text = document if isinstance(document, str) else json.dumps(document)
    encoded = json.dumps({**header, "__metadata__": {"resnet_jax": text}}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def with_document(change):
    def changed(content):
        header, document, data = split(content)
        return join(header, change(document) or document, data)

    return changed


def with_setting(section, **settings):
    return with_document(lambda document: document[section].update(settings))


def with_tensors(change):
    def changed(content):
        tensors = load(content)
        change(tensors)
        return save(tensors, metadata={"resnet_jax": json.dumps(split(content)[1])})

    return changed


def without(key):
    return with_document(lambda document: {k: v for k, v in document.items() if k != key})


def renamed(tensors):
    tensors["params/classifier/bia"] = tensors.pop("params/classifier/bias")


def other_dtype(tensors):
    tensors["params/classifier/bias"] = tensors["params/classifier/bias"].astype(np.float16)


KERNEL = "params/classifier/kernel"
NEEDED = r"needs (it as )?float32 of shape"
DAMAGES = {
    "empty": (lambda content: b"", "the file has 0 bytes"),
    "no header": (lambda content: content[:7], "the file has 7 bytes"),
    "header cut off": (lambda content: content[:300], "the file has 300 bytes, its header claims"),
    "tensors cut off": (lambda content: content[:-1], "not fully covered"),
    "something appended": (lambda content: content + b"\0", "not fully covered"),
    "huge header": (lambda content: b"\xff" * 8 + content[8:], "its header claims 18446744073709551615"),
    "text": (lambda content: b"version https://example.org/large-file\n" * 9, "its header claims"),
    "header flipped": (lambda content: content[:8] + b"[" + content[9:], "invalid JSON in header"),
    "long header": (lambda content: struct.pack("<Q", 1 << 25) + bytes(1 << 25), "allowed are 16777216"),
    "other writer": (lambda content: join({}, {}, b"").replace(b"resnet_jax", b"else_where"), "there are no tensors"),
    "metadata of numbers": (
        lambda content: struct.pack("<Q", 27) + b'{"__metadata__": {"a": 12}}',
        "expected a string",
    ),
    "version 1": (with_document(lambda document: {**document, "format_version": 1}), "format_version=1; this release"),
    "version true": (with_document(lambda document: {**document, "format_version": True}), "format_version=True"),
    "no version": (without("format_version"), "format_version=None"),
    "no JSON": (with_document(lambda document: "{'a': 1}"), "the description is not JSON"),
    "no object": (with_document(lambda document: "[1, 2]"), "the description must be a JSON object, found list"),
    "deep JSON": (with_document(lambda document: "[" * 100_000), "the description is not JSON"),
    "long JSON": (with_document(lambda document: " " * 5_000_000), "the description has 5000000 characters"),
    "long number": (with_document(lambda document: "9" * 5000), "the description is not JSON"),
    "net is no object": (
        with_document(lambda document: {**document, "net": 3}),
        "net must be a JSON object, found int",
    ),
    "no net": (without("net"), "lacks the key 'net'"),
    "unknown key": (
        with_document(lambda document: {**document, "path": "/etc"}),
        "unknown key 'path'; known: ",
    ),
    "unknown key of any length": (with_document(lambda document: {"x" * 10**6: 0, **document}), "unknown key 'xxxx"),
    "unknown setting": (with_setting("net", parent=1), "net has the unknown key 'parent'; known: stage_sizes, num_"),
    "setting of another block": (with_setting("net", stride_in="1x1"), "net has the unknown key 'stride_in'"),
    "block": (with_setting("net", block="wide", stride_in="1x1"), "net.block=wide is not one of basic, bottleneck"),
    "null": (with_setting("net", width=None), "net.width must not be null"),
    "width": (with_setting("net", width=-1), "net.width=-1 must be a whole number"),
    "dtype": (with_setting("net", dtype="object"), "net.dtype=object is not one of float32, bfloat16"),
    "dtype of a kind": (with_setting("net", dtype=[["a", "i4"]]), "net.dtype=.* must be a dtype's name"),
    "scan": (with_setting("net", scan=1), "net.scan=1 must be true or false"),
    "momentum": (with_setting("net", bn_momentum=float("nan")), r"net.bn_momentum=nan must be a number in \[0, 1\)"),
    "other width": (with_setting("net", width=1), f"tensor .* is float32 of shape .*; .*{NEEDED}"),
    "endless net": (with_setting("net", stage_sizes=[10**9, 1]), "too few for the net of these settings"),
    "more blocks than tensors": (with_setting("net", stage_sizes=[60, 1]), "too few for the net of these settings"),
    "endless loop": (with_setting("net", stage_sizes=[1, 10**9], scan=True), "too few for the net"),
    "endless stages": (with_setting("net", stage_sizes=[1] * 1000), "too few for the net"),
    "endless width": (with_setting("net", width=10**30), "too few for the net"),
    "doubled to no end": (with_setting("net", stage_sizes=[1] * 30, scan=True), "too few for the net"),
    "momentum that is none": (with_setting("net", bn_momentum=False), r"net.bn_momentum=False must be a number in"),
    "dropout that is none": (with_setting("net", dropout_rate=False), r"net.dropout_rate=False must be a number in"),
    "endless groups": (with_setting("net", bn_group_size=2**20 + 1), "net.bn_group_size=1048577 must be at most"),
    "endless classes": (
        with_document(lambda document: {**document, "input": document["net"].update(num_classes=10**30)}),
        "too few for the net",
    ),
    "endless channels": (
        with_setting("input", image_shape=[1, 1, 10**30], mean_shape=[10**30]),
        "too few for the net",
    ),
    "two classes": (with_setting("input", class_names=["a", "b"]), "input.class_names are 2, the net has 5 classes"),
    "numbered classes": (with_setting("input", class_names=[0, 1, 2, 3, 4]), "class_names must be a list of texts"),
    "image shape": (with_setting("input", image_shape=[8, 8]), "must be three positive whole numbers"),
    "endless image": (with_setting("input", image_shape=[8, 4097, 3], mean_shape=[3]), "at most 4096 pixels high"),
    "image larger than what it is cut from": (with_setting("input", short_side=7), "short_side=7 must be .* from 8"),
    "endless short side": (with_setting("input", short_side=10**9), "short_side=1000000000 must be .* to 40960"),
    "mean of one pixel": (with_setting("input", mean_shape=[3]), rf"input/mean is .*\(6, 8, 3\); .*{NEEDED} \(3,\)"),
    "resize": (
        with_setting("input", resize="cubic"),
        "resize='cubic'; allowed: area, bilinear, pillow_bilinear, pillow_bicubic",
    ),
    "metrics": (with_setting("metrics", error="low"), "metrics: error='low' must be a finite number"),
    "name": (with_document(lambda document: {**document, "name": ["a"]}), "name must be a text or null"),
    "renamed tensor": (with_tensors(renamed), f"params/classifier/bias is missing; .*{NEEDED} .5,."),
    "missing tensor": (with_tensors(lambda tensors: tensors.pop(KERNEL)), rf"{KERNEL} is missing; .*{NEEDED} \(4, 5\)"),
    "extra tensor": (with_tensors(lambda tensors: tensors.update(x=np.zeros(9, np.float32))), "'x' is none that the"),
    "other dtype": (with_tensors(other_dtype), r"classifier/bias is float16 of shape \(5,\); the net needs float32"),
    "other shape": (
        with_tensors(lambda tensors: tensors.update({KERNEL: tensors[KERNEL].T.copy()})),
        rf"{KERNEL} is float32 of shape \(5, 4\); .*{NEEDED} \(4, 5\)",
    ),
    "small mean": (
        with_tensors(lambda tensors: tensors.update({"input/mean": np.zeros((6, 7, 3), np.float32)})),
        rf"input/mean is float32 of shape \(6, 7, 3\); .*{NEEDED} \(6, 8, 3\)",
    ),
    "std of zero": (
        with_tensors(lambda tensors: tensors.update({"input/std": np.zeros(3, np.float32)})),
        "input/std must be finite and above 0",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_quickly(tmp_path, saved, damage):
    change, message = DAMAGES[damage]
    content = saved.read_bytes()
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(change(content))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"damaged.safetensors is no weight file .*{message}") as error:
        load_weights(path)
    seconds, peak_bytes = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 3
    assert peak_bytes < 10 * path.stat().st_size + 20_000_000
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("tensors", "message"), [(9, "are too few for the net"), (10, f"norm1/mean is missing; .*{NEEDED}")]
)
def test_a_claim_of_many_blocks_costs_little(tmp_path, monkeypatch, saved, tensors, message):
    """Tracing takes 10 ms a block, and in a file it takes 600 bytes."""
    _, document, _ = split(saved.read_bytes())
    document = {**document, "net": {**document["net"], "stage_sizes": [300], "width": 1}, "input": None}
    count = 300 * tensors
    header = {f"{i:x}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(count)}
    path = tmp_path / "claim.safetensors"
    path.write_bytes(join(header, document, bytes(count)))
    made, make_block = [], ResNet.make_block

    def counted(self, *arguments, **options):
        made.append(options)
        return make_block(self, *arguments, **options)

    monkeypatch.setattr(ResNet, "make_block", counted)
    with pytest.raises(ValueError, match=message):
        load_weights(path)
    assert len(made) == (2 if tensors == 10 else 0)


@pytest.mark.parametrize("net", NETS)
def test_blocks_that_are_alike_need_not_be_traced(net):
    name, options = NETS[net]
    model = create_model(name, **{**TINY, **options, "stage_sizes": (1, 2, 4)})
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    assert variable_shapes(model, 3) == jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_a_file_without_input_and_first_layer_is_refused(tmp_path):
    path = save_pretrained(tmp_path / "net.safetensors", *tiny())
    path.write_bytes(with_tensors(lambda tensors: tensors.pop("params/stem/conv/kernel"))(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"params/stem/conv/kernel is missing; .*{NEEDED} \(3, 3, 3, 2\)"):
        load_weights(path)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_weights(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="the folder has no config.json"):
        load_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        load_weights(tmp_path / "pipe")


def mutations(content, random, count):
    """Files with one byte changed, most of them in the header, or cut off."""
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for index in range(count):
        end = len(content) if index % 4 == 0 else header if index % 4 == 1 else 1200
        place = int(random.integers(0, end))
        if index % 10 == 9:
            yield content[:place]
        else:
            # Digits and brackets get further than any byte does.
            byte = random.choice(list(b'0123456789{}[],"')) if index % 2 else random.integers(0, 256)
            yield content[:place] + bytes([byte]) + content[place + 1 :]


def test_any_mutation_loads_or_is_a_value_error(tmp_path):
    model = create_model("cifar_resnet20", width=1, stage_sizes=(1,), num_classes=2)
    input = InputDescription((1, 1, 3), np.float32([1, 2, 3]), np.float32([1, 1, 1]), ("a", "b"))
    variables = random_variables(model, (8, 8, 3), train=False)
    path = save_pretrained(tmp_path / "net.safetensors", model, variables, input=input, metrics={"error": 0.5})
    content, path = path.read_bytes(), tmp_path / "mutated.safetensors"
    outcomes = {True: 0, False: 0}
    for mutated in mutations(content, np.random.default_rng(0), 500):
        path.write_bytes(mutated)
        try:
            file = load_weights(path)
        except ValueError as error:
            assert str(path) in str(error)
            outcomes[False] += 1
        else:
            assert jax.tree.map(jnp.shape, file.variables) == jax.tree.map(jnp.shape, variable_shapes(file.model, 3))
            outcomes[True] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_weights_are_read_without_the_training_libraries(saved):
    heavy = ["optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "resnet_jax.training"]
    code = (
        f"import sys; from resnet_jax.pretrained.reading import load_weights; load_weights({str(saved)!r}); "
        f"print(*[name for name in {heavy} if name in sys.modules])"
    )
    checkout = Path(__file__).resolve().parent.parent
    finished = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=120)
    assert (finished.stdout.strip(), finished.returncode) == ("", 0), finished.stderr
