"""The generated shapes: boxes are around what is seen, images depend on their number alone, the folder is VOC's."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from experiment_modules import experiment_modules
from PIL import Image

from resnet_jax.detection.voc_folder import VocFolder

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "shapes"


@pytest.fixture(scope="module")
def shapes():
    with experiment_modules(FOLDER) as imported:
        yield imported("make_shapes")


@pytest.fixture(scope="module")
def scenes(shapes):
    return [shapes.make_scene(0, "train", index) for index in range(150)]


def by_colour(scene):
    """Of each object the pixels of the colour that most pixels in its box share with no background."""
    flat = scene.image.astype(np.int64) @ (1, 256, 65536)
    values, counts = np.unique(flat, return_counts=True)
    # The noise seldom has a colour twice; an object has one alone.
    for x1, y1, x2, y2 in scene.boxes:
        inside, own = np.unique(flat[y1:y2, x1:x2], return_counts=True)
        whole = counts[np.searchsorted(values, inside)]
        yield [flat == value for value in inside[(own == whole) & (own >= 20)]]


def around(mask):
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_boxes_are_tight_around_the_pixels_of_an_object_s_colour(scenes):
    for scene in scenes:
        for box, masks in zip(scene.boxes, by_colour(scene), strict=True):
            assert box.tolist() in [around(mask) for mask in masks]


def test_shapes_are_what_they_are_called(shapes, scenes):
    filled = {name: [] for name in shapes.CLASSES}
    middle = {name: [] for name in shapes.CLASSES}
    for scene in scenes:
        for box, label, covered, masks in zip(scene.boxes, scene.labels, scene.covered, by_colour(scene), strict=True):
            if covered == 0:
                (mask,) = (each for each in masks if around(each) == box.tolist())
                x1, y1, x2, y2 = box
                filled[shapes.CLASSES[label]].append(mask.sum() / ((x2 - x1) * (y2 - y1)))
                middle[shapes.CLASSES[label]].append(mask[(y1 + y2) // 2, (x1 + x2) // 2])
    assert all(len(parts) > 20 for parts in filled.values())
    # An ellipse has pi / 4 of its box if it is upright, and less at an angle; a triangle at most a half and a little.
    assert 0.7 < min(filled["disc"]) < max(filled["disc"]) < 0.82 and all(middle["disc"])
    assert 0.4 < min(filled["ring"]) < max(filled["ring"]) < 0.65 and not any(middle["ring"])
    assert 0.3 < min(filled["triangle"]) < max(filled["triangle"]) < 0.6 and all(middle["triangle"])


def test_sizes_numbers_and_covering_are_as_promised(shapes, scenes):
    heights, widths = np.array([scene.image.shape[:2] for scene in scenes]).T
    assert min(*heights, *widths) >= 96 and max(*heights, *widths) <= 160
    assert (heights > widths).sum() > 40 and (widths > heights).sum() > 40
    numbers = np.bincount([len(scene.labels) for scene in scenes], minlength=5)
    assert numbers[0] == 0 and numbers[1:5].min() > 15 and len(numbers) == 5
    assert np.bincount(np.concatenate([scene.labels for scene in scenes])).min() > 80
    covered = np.concatenate([scene.covered for scene in scenes])
    assert 0.3 < covered.max() <= 0.6 and 0.05 < (covered > 0).mean() < 0.5
    sides = np.concatenate([scene.boxes[:, 2:] - scene.boxes[:, :2] for scene in scenes])
    assert sides.min() >= 4 and sides.max() <= 0.66 * 160 + 1


def test_objects_stand_out_from_the_background(scenes):
    for scene in scenes[:40]:
        objects = np.zeros(scene.image.shape[:2], bool)
        for box, masks in zip(scene.boxes, by_colour(scene), strict=True):
            mask = next(each for each in masks if around(each) == box.tolist())
            objects |= mask
        background = scene.image[~objects].astype(int)
        assert background.std(0).min() > 8
        for colour in np.unique(scene.image[objects], axis=0).astype(int):
            # In some channel it is beyond all noise.
            assert (np.abs(background - colour).min(0) > 30).any()


def test_an_image_is_a_function_of_seed_split_and_index(shapes, scenes):
    again = shapes.make_scene(0, "train", 7)
    for one, other in zip(again, scenes[7], strict=True):
        np.testing.assert_array_equal(one, other)
    others = [shapes.make_scene(*key) for key in ((1, "train", 7), (0, "val", 7), (0, "test", 7), (0, "train", 8))]
    pictures = [scene.image.tobytes() for scene in (again, *others)]
    assert len(set(pictures)) == 5


def test_the_folder_is_one_of_voc_s(shapes, tmp_path):
    folder = shapes.make_shapes(tmp_path / "shapes", images=11, seed=3)
    sizes = {"train": 11, "val": 2, "test": 2}
    names = set()
    for split, count in sizes.items():
        source = VocFolder(folder, split)
        assert len(source) == count and source.class_names == shapes.CLASSES
        for index, example in enumerate(source):
            scene = shapes.make_scene(3, split, index)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(example.image))), scene.image)
            assert example.boxes.tolist() == scene.boxes.tolist()
            assert example.labels.tolist() == scene.labels.tolist() and not example.ignored.any()
            names.add(example.name)
    assert len(names) == 15 == len(list((folder / "JPEGImages").iterdir()))
    with pytest.raises(FileExistsError):
        shapes.make_shapes(folder, images=1, seed=3)
    with pytest.raises(ValueError, match="images=0, seed=3; allowed are images from 1"):
        shapes.make_shapes(tmp_path / "none", images=0, seed=3)
    assert not (tmp_path / "none").exists()


def test_a_thousand_images_take_seconds(shapes, tmp_path):
    start = time.process_time()
    shapes.make_shapes(tmp_path / "shapes", images=50, seed=0)
    assert time.process_time() - start < 20 * 70 / 1000
