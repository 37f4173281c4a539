"""Named weights are what the catalogue says, in the cache as after the download."""

import dataclasses
import hashlib
import json
import re

import pytest
from https_server import send, serving

from resnet_jax.models.names import settings_of
from resnet_jax.models.registry import create_model
from resnet_jax.pretrained.description import input_settings
from resnet_jax.pretrained.layout import variable_shapes
from resnet_jax.pretrained.zoo import cache_folder, catalogue_entry, fetch, list_pretrained

CONTENT = b"weights" * 1000
NAMES = list_pretrained()


def values_in(tree):
    return sum(values_in(value) if isinstance(value, dict) else value.size for value in tree.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_of_the_catalogue_holds_together(name):
    entry = catalogue_entry(name)
    assert entry.name == name
    # Makers put the digest's first digits into the file's name.
    digits = re.fullmatch(r"\w+-([0-9a-f]{8})\.(pth|th)", entry.file.file_name)[1]
    assert entry.file.sha256.startswith(digits) and len(entry.file.sha256) in (8, 64)
    assert entry.file.url.startswith("https://")
    depth = re.match(r"(cifar_)?resnet\d+", name)[0]
    assert entry.model in (depth, f"{depth}_v1_5") and depth.removeprefix("cifar_") in entry.file.file_name
    assert entry.license and entry.source and entry.measured_on
    assert 0.05 < entry.metrics["error_top1"] < 0.35
    assert 0.2 < entry.metrics.get("error_top5", 0.25 * entry.metrics["error_top1"]) / entry.metrics["error_top1"] < 0.4
    settings = settings_of(entry.model, {})
    assert len(entry.input.class_names) == settings["num_classes"]
    # The file's length is that of the net's float32 values and a little for their names.
    model = create_model(entry.model, scan=entry.model == "cifar_resnet1202")
    least = 4 * values_in(variable_shapes(model, 3))
    assert least <= entry.file.most_bytes <= 1.11 * least


def test_the_catalogue_holds_the_public_nets_of_the_paper():
    assert list_pretrained("*.tv_in1k") == [f"resnet{depth}.tv_in1k" for depth in (18, 34, 50, 101, 152)]
    assert list_pretrained("cifar_*") == [f"cifar_resnet{d}.akamaster_cifar10" for d in (20, 32, 44, 56, 110, 1202)]
    assert list_pretrained("resnet50.?v*") == ["resnet50.tv_in1k", "resnet50.tv2_in1k"]
    assert list_pretrained("Resnet*") == [] and len(set(NAMES)) == len(NAMES)
    # Deeper is better, of one making.
    for pattern in ("*.tv_in1k", "*.tv2_in1k", "*.a1_in1k", "cifar_*"):
        errors = [catalogue_entry(name).metrics["error_top1"] for name in list_pretrained(pattern)]
        assert errors == sorted(errors, reverse=True)


def test_what_nets_of_the_catalogue_expect_of_their_input():
    found = {name: input_settings(catalogue_entry(name).input) for name in NAMES}
    for name, settings in found.items():
        size = 32 if "cifar" in name else 288 if "a1" in name else 224
        assert settings["image_shape"] == [size, size, 3]
    assert {found[name]["short_side"] for name in list_pretrained("*.tv_in1k")} == {256}
    assert {found[name]["short_side"] for name in list_pretrained("*.tv2_in1k")} == {232}
    assert {found[name]["resize"] for name in list_pretrained("*.tv*")} == {"pillow_bilinear"}
    assert {found[name]["resize"] for name in list_pretrained("*.a1*")} == {"pillow_bicubic"}
    entry = catalogue_entry("cifar_resnet20.akamaster_cifar10")
    assert entry.input.mean.round(2).tolist() == pytest.approx([123.68, 116.28, 103.53], rel=1e-4)
    assert (entry.input.short_side, entry.input.class_names[3]) == (None, "cat")


def test_the_cifar_file_at_hand_is_that_of_the_catalogue(real_data):
    path = real_data.parent / "weights" / "cifar_resnet20.th"
    if not path.exists():
        pytest.skip(f"needs {path}")
    catalogue_entry("cifar_resnet20.akamaster_cifar10").file.check(path)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no weights are called 'resnet50.tv1_in1k'; did you mean '.*resnet50.tv_in1k'"
    ):
        catalogue_entry("resnet50.tv1_in1k")
    with pytest.raises(ValueError, match="no weights are called 'vgg'; known: resnet18.tv_in1k, "):
        fetch("vgg")


ENTRY = {
    "url": "https://example.org/some-model.safetensors", "sha256": hashlib.sha256(CONTENT).hexdigest(),
    "size": len(CONTENT), "max_size": None, "format": "resnet_jax", "model": "resnet18", "source": "me",
    "license": "MIT", "metrics": {"error_top1": 0.5}, "measured_on": "my images",
    "input": {
        "image_size": 64, "short_side": 64, "resize": "area", "mean": [1, 2.5, 3], "std": [1.0],
        "class_names": ["cat", "dog"],
    },
}  # fmt: skip


def write_catalogue(path, entries, version=1):
    path.write_text(json.dumps({"format_version": version, "entries": entries}))
    return path


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A catalogue of one net on a server, the list of what was asked of it, and a cache."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "cache"))
    asked = []

    def answer(handler):
        asked.append(handler.path)
        send(CONTENT)(handler)

    with serving(answer, tmp_path) as base:
        url = f"{base}/v1/some-model.safetensors?download=true"
        yield write_catalogue(tmp_path / "mine.json", {"mine": {**ENTRY, "url": url}}), asked


def test_fetched_weights_are_kept_and_hashed_again(tmp_path, served):
    catalogue, asked = served
    path = fetch("mine", catalogue=catalogue)
    assert path == tmp_path / "cache" / "mine" / "some-model.safetensors"
    assert path.read_bytes() == CONTENT and len(asked) == 1
    assert fetch("mine", catalogue=catalogue) == path and len(asked) == 1
    other = fetch("mine", catalogue=catalogue, cache_dir=tmp_path / "other")
    assert other == tmp_path / "other" / "mine" / "some-model.safetensors" and len(asked) == 2


def test_damaged_weights_in_the_cache_are_named_and_replaced(served):
    catalogue, asked = served
    path = fetch("mine", catalogue=catalogue)
    # As long as before: only the digest tells.
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.warns(UserWarning, match=f"{path} is not .* expected .* found .*; it is downloaded again"):
        assert fetch("mine", catalogue=catalogue) == path
    assert path.read_bytes() == CONTENT and len(asked) == 2


def test_without_a_network_the_place_for_the_file_is_named(tmp_path):
    entry = {**ENTRY, "url": "https://127.0.0.1:9/some-model.safetensors"}
    catalogue = write_catalogue(tmp_path / "mine.json", {"mine": entry})
    expected = tmp_path / "cache" / "mine" / "some-model.safetensors"
    with pytest.raises(ConnectionError, match=f"fetch it by other means and put it at {expected}$"):
        fetch("mine", catalogue=catalogue, cache_dir=tmp_path / "cache")
    expected.write_bytes(CONTENT)
    assert fetch("mine", catalogue=catalogue, cache_dir=tmp_path / "cache") == expected


def test_a_wrong_download_is_not_kept(tmp_path, served):
    catalogue, _ = served
    entry = json.loads(catalogue.read_text())["entries"]["mine"]
    write_catalogue(catalogue, {"mine": {**entry, "sha256": "0" * 64}})
    with pytest.raises(ValueError, match="expected 7000 bytes with sha256 0000"):
        fetch("mine", catalogue=catalogue)
    assert list((tmp_path / "cache" / "mine").iterdir()) == []


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RESNET_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "resnet_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "resnet_jax"
    monkeypatch.setenv("RESNET_JAX_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"


def test_a_catalogue_of_ones_own(tmp_path):
    catalogue = write_catalogue(tmp_path / "mine.json", {"mine": ENTRY})
    assert list_pretrained(catalogue=catalogue) == ["mine"]
    entry = catalogue_entry("mine", catalogue=catalogue)
    assert (entry.file.size, entry.format, entry.metrics) == (7000, "resnet_jax", {"error_top1": 0.5})
    assert (entry.input.mean.tolist(), entry.input.std.tolist()) == ([1, 2.5, 3], [1, 1, 1])
    assert (entry.input.class_names, entry.input.short_side, entry.input.resize) == (("cat", "dog"), 64, "area")
    with pytest.raises(dataclasses.FrozenInstanceError):
        entry.model = "resnet34"
    with pytest.raises(FileNotFoundError):
        list_pretrained(catalogue=tmp_path / "none.json")


def changed(**change):
    return {"mine": {**ENTRY, **change}}


def changed_input(**change):
    return changed(input={**ENTRY["input"], **change})


@pytest.mark.parametrize(
    "entries, message",
    [
        ([], "entries must be a JSON object"),
        ({"../x": ENTRY}, "the name '../x' must be at most 100 letters"),
        ({"": ENTRY}, "the name '' must be"),
        ({".x": ENTRY}, "the name '.x' must be"),
        ({"mine": None}, "mine must be a JSON object"),
        ({"mine": {**ENTRY, "md5": "x"}}, "mine has the unknown key 'md5'"),
        ({"mine": {k: v for k, v in ENTRY.items() if k != "license"}}, "mine lacks the key 'license'"),
        (changed(url="http://example.org/x.pth"), "mine: url='http://example.org/x.pth' must begin with https://"),
        (changed(url=3), "mine: url=3; allowed: a text"),
        (changed(sha256="12345678x"), "mine: sha256='12345678x' must be 8 to 64 digits"),
        (changed(sha256=None), "mine: sha256=None; allowed: a text"),
        (changed(size=None), "mine: size=None and max_size=None: one of the two"),
        (changed(size=-1), "mine: size=-1; allowed: a whole number from 1"),
        (changed(size=7000.0), "mine: size=7000.0; allowed"),
        (changed(format="onnx"), "mine: format=onnx; allowed: torchvision, timm"),
        (changed(model="resnet51"), "mine: unknown model 'resnet51'; did you mean"),
        (changed(license=""), "mine: license=; allowed: a text of 1 to"),
        (changed(metrics={"error_top1": 23.87}), "mine: metrics: error_top1=23.87; allowed: a number from 0 to 1"),
        (
            changed(metrics={"accuracy": 0.7}),
            "mine: metrics has the unknown key 'accuracy'; known: error_top1, error_top5",
        ),
        (changed(metrics={"error_top1": None}), "mine: metrics: error_top1=None; allowed"),
        (changed_input(image_size=0), "mine: input: image_size=0; allowed: a whole number from 1 to 4096"),
        (changed_input(short_side=63), "mine: input: short_side=63; allowed: a whole number from 64"),
        (changed_input(short_side=None), "mine: input: resize=area; allowed: null, as short_side is"),
        (changed_input(resize="nearest"), "mine: input: resize=nearest; allowed: area, bilinear"),
        (changed_input(mean=[1, 2]), "mine: input: mean=.*allowed: 3 numbers from 0 to 255"),
        (changed_input(std=0), "mine: input: std=0; allowed: 3 numbers from 0.001 to 255"),
        (changed_input(class_names="imagenet22k"), "mine: input: class_names=imagenet22k; allowed: imagenet, cifar10"),
        (changed_input(class_names=[1]), "mine: input: class_names=.*allowed: a list of texts"),
        (changed_input(class_names=[]), "mine: input: class_names=.*allowed"),
    ],
)
def test_what_is_wrong_in_a_catalogue_is_named(tmp_path, entries, message):
    catalogue = write_catalogue(tmp_path / "mine.json", entries)
    with pytest.raises(ValueError, match=f"mine.json is no catalogue of weights that can be used: .*{message}"):
        catalogue_entry("mine", catalogue=catalogue)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xff", "decode"),
        (b"[]", "the file must be a JSON object"),
        (b"[" * 100_000, "recursion"),
        (b'{"format_version": 2, "entries": {}}', "format_version=2; allowed: 1"),
        (b'{"format_version": true, "entries": {}}', "format_version=True; allowed: 1"),
        (b" " * (4 * 2**20 + 1), "it has more than 4194304 bytes"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused(tmp_path, content, message):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"mine.json is no catalogue of weights that can be used: .*{message}"):
        list_pretrained(catalogue=tmp_path / "mine.json")
