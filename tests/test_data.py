import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from compress_env.data import DATASETS, ImageSet, Splits, load_splits, normalize
from compress_env.datasets import cifar
from compress_env.datasets.cache import cached_array

COUNTS = {"ant": 12, "bee": 24, "cat": 36}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("COMPRESS_ENV_CACHE", str(folder))
    return folder


def make_folder(root: Path, counts=COUNTS, size=(4, 4), first=0) -> int:
    """Images of one colour each, told apart by their red and green."""
    number = first
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            colour = (number % 256, number // 256, 7)
            Image.new("RGB", size, colour).save(root / name / f"{number}.png")
            number += 1
    return number


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    make_folder(root / "test", {"ant": 2, "cat": 1}, first=make_folder(root / "train"))
    return root


def colours(images: ImageSet) -> list[int]:
    return (images.images[:, 0, 0, 0] + 256 * images.images[:, 1, 0, 0].astype(int)).tolist()


def test_digits_are_split_without_overlap_or_loss():
    splits, other = load_splits("digits"), load_splits("digits", seed=1)
    assert [len(s) for s in (splits.train, splits.search, splits.test)] == [897, 540, 360]
    parts = [s.images[:, 0].reshape(-1, 64) for s in (splits.train, splits.search, splits.test)]
    everything = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, np.concatenate(parts))) == sorted(map(bytes, everything))
    assert np.bincount(splits.search.labels).min() >= 50
    assert np.array_equal(splits.test.images, other.test.images)
    assert not np.array_equal(splits.search.images, other.search.images)


def test_search_split_is_cut_from_train(folder):
    splits, again = (load_splits("imagefolder", folder) for _ in range(2))
    train, search, test = (colours(s) for s in (splits.train, splits.search, splits.test))
    assert sorted(train + search) == list(range(72))
    assert sorted(test) == [72, 73, 74]
    assert np.bincount(splits.search.labels).tolist() == [2, 4, 6]
    assert search == colours(again.search)
    assert sorted(search) != sorted(colours(load_splits("imagefolder", folder, seed=1).search))
    # The labels stay with their images.
    labels = np.repeat([0, 1, 2], [12, 24, 36])
    assert splits.train.labels.tolist() == [labels[colour] for colour in train]


def test_own_search_split_is_used(folder):
    make_folder(folder / "val", {"bee": 2}, first=80)
    splits = load_splits("imagefolder", folder)
    assert sorted(colours(splits.search)) == [80, 81]
    assert splits.search.labels.tolist() == [1, 1]
    assert len(splits.train) == 72


def test_tiny_imagenet_annotations_give_the_classes(folder):
    (folder / "val" / "images").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(folder / "val" / "images" / f"{name}.png")
    (folder / "val" / "val_annotations.txt").write_text("a.png\tcat\t0\t0\nb.png\tbee\t0\t0\n")
    assert sorted(load_splits("imagefolder", folder).search.labels.tolist()) == [1, 2]


def test_subsets_are_fixed_balanced_and_cheap(folder, cache):
    train = load_splits("imagefolder", folder).train
    few, more = train.take(10, seed=3), train.take(20, seed=3)
    assert colours(few) == colours(more)[:10]
    assert np.bincount(more.labels).tolist() == pytest.approx([20 / 6, 20 / 3, 10], abs=1)
    # Nothing but the twenty and the ten was decoded, and nothing is carried to other processes.
    assert sorted(len(np.load(f)) for f in (cache / "arrays").iterdir()) == [10, 20]
    assert isinstance(few.images, np.memmap)
    assert b"memmap" not in pickle.dumps(few)
    assert colours(pickle.loads(pickle.dumps(few))) == colours(few)
    assert train.take(1000) is train


def test_changed_images_are_decoded_again(folder):
    before = sorted(colours(load_splits("imagefolder", folder).test))
    path = folder / "test" / "cat" / "74.png"
    Image.new("RGB", (4, 4), (200, 0, 0)).save(path)
    assert sorted(colours(load_splits("imagefolder", folder).test)) != before


def test_sizes_are_checked_or_made_equal(folder):
    # 12 wide, 8 high: black, white, black in columns of 4.
    wide = np.zeros((8, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    Image.fromarray(wide).save(folder / "test" / "ant" / "wide.png")
    with pytest.raises(ValueError, match=r"image_size must be given.*wide.png is 12x8"):
        _ = load_splits("imagefolder", folder).test.images
    images = load_splits("imagefolder", folder, image_size=8).test.images
    assert images.shape == (4, 3, 8, 8)
    centre = wide[:, 2:10].transpose(2, 0, 1)
    assert any(np.array_equal(image, centre) for image in images)


def test_truncated_image_is_reported_by_its_path(folder, cache):
    noise = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    path = folder / "train" / "bee" / "broken.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    splits = load_splits("imagefolder", folder)
    with pytest.raises(ValueError, match=r"bee/broken.jpg is truncated"):
        _ = splits.train.images, splits.search.images
    assert not list((cache / "arrays").glob("*.partial"))


FILL = """
import sys, time, pathlib, numpy as np
from compress_env.datasets.cache import cached_array
log, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
def fill(array):
    array[0] = 1
    with log.open("a") as file:
        file.write("filling\\n")
    time.sleep(seconds)
    array[:] = np.arange(5)
print(cached_array("key", (5,), np.int64, fill).tolist())
"""


def start(log: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", FILL, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_fill_once(tmp_path):
    log = tmp_path / "log"
    processes = [start(log, 1.0) for _ in range(2)]
    assert [p.communicate()[0] for p in processes] == ["[0, 1, 2, 3, 4]\n"] * 2
    assert log.read_text() == "filling\n"


def test_killed_writer_leaves_nothing_broken(tmp_path):
    log = tmp_path / "log"
    process = start(log, 60)
    while not log.exists():
        assert process.poll() is None
    process.kill()
    process.wait()

    def fill(array):
        array[:] = 9

    assert cached_array("key", (5,), np.int64, fill).tolist() == [9] * 5


def test_normalize_by_hand():
    images = np.zeros((1, 3, 1, 2), np.uint8)
    images[0, :, 0, 1] = 255
    images.flags.writeable = False
    one = ImageSet(images, np.zeros(1, np.int64))
    splits = Splits("mine", one, one, one, 2)
    expected = [[-0.485 / 0.229, 0.515 / 0.229], [-0.456 / 0.224, 0.544 / 0.224]]
    for given in (images, torch.tensor(images)):
        result = normalize(given, splits)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result[0, :2, 0], torch.tensor(expected))


def test_cifar_reads_what_torchvision_downloaded(tmp_path, monkeypatch):
    root = tmp_path / "root"
    batches = root / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (6, 20, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, data in zip(names, pixels, strict=True):
        content = {"data": data, "labels": [0, 1] * 10}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("ab")}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr(cifar, "_TRAIN_IMAGES", 100)
    monkeypatch.setattr(cifar, "_TEST_IMAGES", 20)
    splits = load_splits("cifar10", root)
    assert [len(s) for s in (splits.train, splits.search, splits.test)] == [83, 17, 20]
    assert np.array_equal(splits.test.images, pixels[5].reshape(20, 3, 32, 32))
    ours = np.concatenate([splits.train.images, splits.search.images]).reshape(-1, 3072)
    assert sorted(map(bytes, ours)) == sorted(map(bytes, pixels[:5].reshape(-1, 3072)))
    assert len(pickle.dumps(splits)) < 20_000


def test_imagenet_reads_a_local_copy(tmp_path):
    root = tmp_path / "root"
    make_folder(root / "train", {"n01": 6, "n02": 6}, size=(300, 260))
    make_folder(root / "val", {"n01": 1, "n02": 1}, size=(260, 300))
    torch.save(({"n01": ("ant",), "n02": ("bee",)}, []), root / "meta.bin")
    splits = load_splits("imagenet", root)
    assert [len(s) for s in (splits.train, splits.search, splits.test)] == [10, 2, 2]
    assert splits.test.images.shape == (2, 3, 224, 224)


def test_bad_arguments_are_named(tmp_path, folder, monkeypatch):
    def fail(self):
        Path(self.root).mkdir(exist_ok=True)  # as torchvision does before it asks for the file
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", fail)
    only_train = tmp_path / "only_train"
    make_folder(only_train / "train")
    strange = tmp_path / "strange"
    make_folder(strange / "train")
    make_folder(strange / "test", {"dog": 1})
    cases = [
        (("mnist",), {}, "dataset must be one of " + ", ".join(DATASETS)),
        (("digits",), {"seed": -1}, "seed must be at least 0"),
        (("digits", "x"), {}, "data_root must be left out"),
        (("digits",), {"image_size": 32}, "image_size must be 8"),
        (("imagefolder",), {}, "data_root must name the folder"),
        (("imagefolder", folder), {"image_size": 0}, "image_size must be at least 1"),
        (("imagefolder", tmp_path / "none"), {}, "none is not a folder"),
        (("imagefolder", only_train), {}, "test/ is missing"),
        (("imagefolder", strange), {}, "a class 'dog' that train/ does not have"),
        (("imagenet", tmp_path), {}, "must be a copy of ImageNet"),
        (("cifar10", tmp_path), {}, "no network.*put cifar-10-python.tar.gz .* into"),
        (("cifar10", tmp_path / "mistyped"), {}, "no network.*into .*mistyped"),
    ]
    for arguments, keywords, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load_splits(*arguments, **keywords)
    assert not (tmp_path / "mistyped").exists()
