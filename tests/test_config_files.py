"""Config files are found, run, changed by overrides, and stored as JSON that gives the same values back."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from resnet_jax import config_files
from resnet_jax.config import base_config, differing_keys, resolve
from resnet_jax.config_files import from_json, load_config, to_json

CHECKOUT = Path(__file__).resolve().parent.parent

SMALL = """
from resnet_jax.config import base_config
def get_config(variant="a"):
    config = base_config()
    config.data.name = variant
    return config
"""


def changed(key, value):
    """The base config with one key changed."""
    config = base_config()
    section, _, leaf = key.partition(".")
    config[section][leaf] = value
    return config


def test_json_gives_the_same_values_and_types():
    config = resolve(changed("optimizer.weight_decay", 1 / 3), train_examples=50_000, device_count=1)
    again = from_json(to_json(config))
    assert again.to_dict() == config.to_dict()
    assert repr(again) == repr(ConfigDict(config))
    assert differing_keys(again, config) == []
    assert to_json(again) == to_json(config)


def test_json_is_an_object_of_finite_numbers():
    with pytest.raises(ValueError, match="not list"):
        from_json("[1]")
    with pytest.raises(ValueError):
        to_json(changed("optimizer.momentum", math.nan))


def write(folder, source, name="small.py"):
    path = folder / name
    path.write_text(source)
    return str(path)


def test_a_config_file_is_run_with_its_variant_and_overrides(tmp_path):
    path = write(tmp_path, SMALL)
    assert load_config(path).data.name == "a"
    config = load_config(f"{path}:b", {"train.batch_size": "64", "seed": "3"})
    assert (config.data.name, config.train.batch_size, config.seed) == ("b", 64, 3)


def test_a_stored_config_is_loaded_again(tmp_path):
    stored = resolve(changed("data.name", "c"), train_examples=50_000, device_count=1)
    path = write(tmp_path, to_json(stored), "config.json")
    config = load_config(path, {"train.log_every": "7"})
    assert (config.data.name, config.train.log_every, "steps" in config) == ("c", 7, False)
    with pytest.raises(ValueError, match="has no variants"):
        load_config(f"{path}:a")


def test_a_config_of_a_version_that_had_fewer_keys_means_their_defaults(tmp_path):
    tree = json.loads(to_json(changed("train.log_every", 7)))
    del tree["num_seeds"], tree["data"]["cutout"], tree["limits"]
    path = write(tmp_path, json.dumps(tree), "config.json")
    assert load_config(path) == changed("train.log_every", 7)
    tree["data"]["nmae"] = 3
    with pytest.raises(ValueError, match=r"unknown config key data\.nmae"):
        load_config(write(tmp_path, json.dumps(tree), "config.json"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SMALL.replace("data.name", "data.nmae"), "unknown config key data.nmae; did you mean data.name"),
        (SMALL.replace("config.data.name", "config.dta.name"), 'small.py: .*Did you mean "data"'),
        (SMALL.replace("variant\n", "3\n"), "data.name=3: must be a name"),
        (SMALL.replace("get_config", "make_config"), "defines no get_config"),
        (SMALL.replace("return config", "return None"), "gave NoneType"),
        (
            SMALL.replace("= base_config()", "= base_config(); del config.optimizer"),
            "missing key optimizer.name",
        ),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, source), {"optimizer.momentum": "0.5"})


def test_a_file_without_variants_takes_none(tmp_path):
    path = write(tmp_path, SMALL.replace('variant="a"', "").replace("= variant", '= "only"'))
    assert load_config(path).data.name == "only"
    with pytest.raises(ValueError, match="takes no variant"):
        load_config(f"{path}:b")


@pytest.mark.parametrize("reference", ["digits", "digits.py", "configs/digits.py", "configs/digits:resnet20"])
def test_an_installed_config_is_found_by_name(reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(reference).model.name == "cifar_resnet20"


def test_a_wheel_carries_its_configs_inside_the_package(tmp_path, monkeypatch):
    (tmp_path / "resnet_jax" / "configs").mkdir(parents=True)
    write(tmp_path / "resnet_jax" / "configs", SMALL, "inside.py")
    monkeypatch.setattr(config_files, "__file__", str(tmp_path / "resnet_jax" / "config_files.py"))
    assert load_config("inside").data.name == "a"


@pytest.mark.parametrize("reference", ["digit", "digits.txt", "elsewhere/digits.py", "configs/digit.py:resnet20"])
def test_a_missing_config_is_answered_with_the_installed_ones(reference):
    with pytest.raises(FileNotFoundError, match="did you mean 'digits'.*Installed configs: cifar10, detection, digits"):
        load_config(reference)


def test_a_file_that_is_no_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a config is a Python file"):
        load_config(write(tmp_path, "seed: 1", "small.yaml"))


def test_importing_takes_no_jax_and_under_a_second():
    code = """
import sys, time
start = time.perf_counter()
import resnet_jax.config_files
print(time.perf_counter() - start, sorted({"jax", "flax", "tensorflow"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    seconds, _, heavy = run.stdout.strip().partition(" ")
    assert float(seconds) < 1 and heavy == "[]"


def test_overrides_are_values_or_text_of_the_key_s_type():
    from_text = load_config("digits", {"train.duration": "7", "schedule.boundaries": "10,20", "data.flip": "true"})
    from_values = load_config("digits", {"train.duration": 7, "schedule.boundaries": (10, 20), "data.flip": True})
    assert from_text == from_values
    with pytest.raises(ValueError, match="train.duration=-1: must be"):
        load_config("digits", {"train.duration": -1})
    with pytest.raises(ValueError, match="did you mean train.duration"):
        load_config("digits", {"train.duraton": 7})
