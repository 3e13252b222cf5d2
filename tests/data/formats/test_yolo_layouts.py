import time

import PIL.Image
import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats import yolo
from jaxdet.data.formats.yolo_layouts import describe, is_described

DATA = "names: [cat, dog]\n"


@pytest.fixture
def touch(tmp_path):
    def write(*paths):
        for path in paths:
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("") if path.endswith("txt") else PIL.Image.new(
                "RGB", (4, 4)
            ).save(file)
        return tmp_path

    return write


def images_of(root, split, text):
    (root / "data.yaml").write_text(text + DATA)
    description = describe(root)
    paths = description.find_images(split)
    return [path.removeprefix(f"{root}/") for path in paths]


def test_folders_lists_and_text_files(touch):
    root = touch("images/train/b.jpg", "images/train/deep/a.PNG", "more/c.jpeg")
    touch("images/train/notes.txt", "images/train/._b.jpg")
    train = ["images/train/b.jpg", "images/train/deep/a.PNG"]
    assert images_of(root, "train", "train: images/train\n") == train
    lists = "train: [images/train/, more]\nval: more\ntest:  # none\n"
    assert images_of(root, "train", lists) == [*train, "more/c.jpeg"]
    assert images_of(root, "val", lists) == ["more/c.jpeg"]
    assert describe(root / "data.yaml").splits == ("train", "val")
    lists = "Validation: more\nTrain: images/train\n"  # as CVAT has them
    assert images_of(root, "Validation", lists) == ["more/c.jpeg"]
    assert describe(root).splits == ("Train", "Validation")
    (root / "lists").mkdir()
    listed = "\ufeff./images/train/b.jpg\r\n\r\n../more/c.jpeg\ndata/more/c.jpeg\n"
    (root / "lists" / "train.txt").write_text(listed)
    with pytest.raises(DataError, match=r"data\.yaml: .*c\.jpeg is 2 times in train"):
        images_of(root, "train", "train: lists/train.txt\n")
    (root / "lists" / "train.txt").write_text(listed[:-18])
    found = images_of(root, "train", "train: lists/train.txt\n")
    assert found == ["images/train/b.jpg", "more/c.jpeg"]


@pytest.mark.parametrize(
    "text",
    [
        "train: ../train/images\n",  # Roboflow's, wrong by one level
        "train: train\\images\n",
        "path: ../datasets/cells  # not there\ntrain: train/images\n",
        "path: inner/..\ntrain: ./train/images\n",
        "path: /content/cells\ntrain: train/images\nval: null\n",
        "train: /content/cells/train/images\n",  # of another computer
        "train: 'C:\\cells\\train\\images'\n",
    ],
)
def test_paths_as_tools_write_them(touch, text):
    root = touch("train/images/a.jpg", "inner/b.jpg")
    assert images_of(root, "train", text) == ["train/images/a.jpg"]


def test_splits_that_are_nowhere_are_left_out(touch, caplog):
    root = touch("train/images/a.jpg")
    text = "train: ../train/images\nval: ../valid/images\n"  # Roboflow's, without val
    assert images_of(root, "train", text)
    assert yolo.splits(root) == ("train",)
    assert "data.yaml: left out val, which is nowhere" in caplog.text
    (root / "train").rename(root / "lost")
    assert yolo.splits(root) == ("train",)  # whose images are an error


def test_a_path_that_is_right_as_written_comes_first(touch):
    root = touch("cells/train/images/a.jpg", "train/images/b.jpg")
    (root / "cells" / "data.yaml").write_text("train: ../train/images\n" + DATA)
    (image,) = describe(root / "cells").find_images("train")
    assert image == str(root / "train" / "images" / "b.jpg")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[no, 1, 'on', 02]", ("no", "1", "on", "02")),  # texts, not what yaml makes
        ("\n- my cat\n- dog", ("my cat", "dog")),
        ("{1: dog, 0: cat}", ("cat", "dog")),
        ("\n  0: cat\n  1: dog\nnc: 2", ("cat", "dog")),
    ],
)
def test_class_names(tmp_path, names, expected):
    (tmp_path / "data.yaml").write_text(f"train: here\nnames: {names}\n")
    assert describe(tmp_path).class_names == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("names: [a, b\ntrain: x", r"not yaml \(.*line 2"),
        ("names: [a, b]\nnc: 3\ntrain: x", "nc is '3', but there are 2 names"),
        (
            "names: {0: a, 2: b}\ntrain: x",
            r"the keys of names are \['0', '2'\]; allowed: 0",
        ),
        ("names: [a, a]\ntrain: x", "'a' stands 2 times in names; allowed: once"),
        (
            "names: [a, [b]]\ntrain: x",
            r"names is \['a', \['b'\]\]; allowed: a name for",
        ),
        ("names: []\ntrain: x", r"names is \[\]"),
        ("names: ''\ntrain: x", "names is ''"),
        ("names: [a]\ntrain: {x: y}", "train is .*allowed: a folder of images"),
        ("names: [a]\npath: [x]\ntrain: x", r"path is \['x'\]; allowed: a folder"),
        ("- names\n- train", "not a yaml with keys"),
        ("[" * 500, "not yaml"),
        ("? [a, b]\n: c", "not yaml"),
        ("\0", "not yaml"),
        ("names: !!python/object/apply:os.system [exit]\ntrain: x", None),
    ],
)
def test_bad_yaml_is_named(tmp_path, text, problem):
    (tmp_path / "data.yaml").write_text(text)
    assert is_described(tmp_path)
    if problem is None:  # Only data, whatever its tag.
        assert describe(tmp_path).class_names == ("exit",)
        return
    with pytest.raises(DataError, match=rf"data\.yaml: {problem}"):
        describe(tmp_path)


def test_repeated_anchors_cost_nothing(tmp_path):
    lines = [
        "a0: &a0 [x, x]",
        *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 99)),
    ]
    lines += ["b0: &b0 {x: y}"]
    lines += [f"b{i}: &b{i} {{<<: [{f'*b{i - 1}, ' * 9}]}}" for i in range(1, 99)]
    (tmp_path / "data.yaml").write_text(
        "\n".join([*lines, "names: *a98", "train: *b98"])
    )
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        describe(tmp_path)
    assert time.monotonic() - start < 10 and len(str(caught.value)) < 10**5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train: lost\n", r"train is 'lost', which does not exist; looked for .*/lost"),
        ("train: a.jpg\n", r"train is 'a.jpg'; allowed: folders and .txt files"),
        ("train: list.txt\n", r"list\.txt: line 2 is 'b\.jpg'; no such image"),
        ("train: bytes.txt\n", r"bytes\.txt: not a text file"),
    ],
)
def test_missing_images_are_named(touch, text, problem):
    root = touch("a.jpg")
    (root / "list.txt").write_text("a.jpg\nb.jpg\n")
    (root / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match=problem):
        images_of(root, "train", text)


def test_folders_without_yaml(touch):
    root = touch("images/a.jpg", "labels/a.txt", "other/notes.yaml.txt")
    assert not is_described(root)
    with pytest.raises(DataError, match="not in YOLO's format; allowed: a yaml"):
        describe(root)
    (root / "classes.txt").write_text("cat\nmy dog\n\n")
    assert describe(root).class_names == ("cat", "my dog")
    assert describe(root).splits == ()
    (root / "labels" / "classes.txt").write_text("my dog\ncat\n")
    with pytest.raises(DataError, match=r"classes\.txt and labels/classes\.txt differ"):
        describe(root)
    (root / "labels" / "classes.txt").unlink()
    (root / "labels" / "a.txt").unlink()
    assert not is_described(root)  # A list of classes alone is no annotation.


def test_folders_of_splits_without_yaml(touch):
    root = touch("images/train/a.jpg", "labels/train/a.txt", "images/valid/b.jpg")
    (root / "_darknet.labels").write_text("cat")
    assert describe(root).splits == ("train", "valid")
    assert describe(root).find_images("valid") == [str(root / "images/valid/b.jpg")]
    touch("c.jpg")
    with pytest.raises(DataError, match=r"c\.jpg is in no folder of a split, .* is"):
        describe(root)


def test_several_yamls(tmp_path):
    for name in ("a.yaml", "b.yml", "unrelated.yaml"):
        (tmp_path / name).write_text("train: x\n" + DATA * (name[0] != "u"))
    assert is_described(tmp_path / "a.yaml")
    with pytest.raises(DataError, match=r"a\.yaml, b\.yml; allowed: name one"):
        describe(tmp_path)
    (tmp_path / "data.yaml").write_text("val: x\n" + DATA)
    assert describe(tmp_path).splits == ("val",)
