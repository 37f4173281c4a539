"""Energy is read from counters of whole devices; where there is none, or none that may be read, there is no number."""

import ctypes

import pytest

from resnet_jax.benchmark import energy
from resnet_jax.benchmark.windows import rate


def counter(folder, name, microjoules):
    (folder / name).mkdir()
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


def test_processors_are_added_and_their_parts_are_not(tmp_path):
    counter(tmp_path, "intel-rapl:0", 2_000_000)
    counter(tmp_path, "intel-rapl:1", 500_000)
    counter(tmp_path, "intel-rapl:0:0", 1_000_000)
    assert energy._of_processors(tmp_path) == 2.5


def test_no_counter_is_no_number(tmp_path):
    assert energy._of_processors(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy._of_processors(tmp_path) is None


class Library:
    """NVIDIA's, of two devices that have used 1,500 and 500 millijoules."""

    def __init__(self, used=(1500, 500), told=0):
        self.used, self.told, self.ended = used, told, False

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self.used)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        device._obj.value = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device, used):
        used._obj.value = self.used[device.value - 1]
        return self.told

    def nvmlShutdown(self):
        self.ended = True


@pytest.mark.parametrize(("told", "expected"), [(0, 2.0), (3, None)])
def test_gpus_are_added_and_one_that_does_not_tell_is_no_number(told, expected, monkeypatch):
    library = Library(told=told)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert energy._of_gpus() == expected and library.ended


def test_a_rate_has_joules_where_every_window_has():
    windows = [{"images": 10, "seconds": 1.0, "joules": 50.0}, {"images": 10, "seconds": 1.0, "joules": 70.0}]
    assert rate(windows, batch=5)["joules_per_image"] == 6.0
    assert "joules_per_image" not in rate([windows[0], {"images": 10, "seconds": 1.0}], batch=5)
