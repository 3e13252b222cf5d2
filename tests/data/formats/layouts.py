"""Writes data sets in the layouts that annotation tools leave, and compares them."""

import io
import json
import pathlib

import numpy as np
import PIL.Image

from jaxdet.data.formats import coco
from jaxdet.data.image_files import has_image_suffix
from tests.data.in_memory import in_memory_data_set


def example(count=3, *, first=0, class_names=("cat", "dog")):
    """Images of 40 rows and 60 columns; of three, one has no object, one has two."""
    gray = range(first, first + count)
    return in_memory_data_set(
        [np.full((40, 60, 3), value, np.uint8) for value in gray],
        [
            [(1, 2, 31, 12, 1), (5, 10, 20, 40, 0), (0, 0, 60, 9, 1)][: i % 3]
            for i in gray
        ],
        image_ids=[f"image_{value}" for value in gray],
        class_names=class_names,
    )


def blood_cells(data_folder):
    """`bccd`, by split."""
    folder = data_folder / "bccd"
    return {
        split: coco.load(folder / "annotations" / f"{split}.json", folder / "images")
        for split in ("train", "val", "test")
    }


def file_names(data_set):
    """The names of the image files, by position."""
    images = {image["id"]: image for image in data_set.ground_truth()["images"]}
    names = [
        str(images[image_id].get("file_name", image_id))
        for image_id in data_set.image_ids
    ]
    return [
        pathlib.Path(name if has_image_suffix(name) else f"{name}.png").name
        for name in names
    ]


def write_images(folder, data_set):
    """Writes the image files."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(file_names(data_set)):
        if data_set.read_encoded:
            content = data_set.read_encoded(position)
        else:
            stream = io.BytesIO()
            PIL.Image.fromarray(data_set.read_image(position)).save(stream, "png")
            content = stream.getvalue()
        (folder / name).write_bytes(content)


def write_coco(file, data_set, *, root=None):
    """Writes a json, with a root category of this name or without any."""
    truth = data_set.ground_truth()
    for image, name in zip(truth["images"], file_names(data_set), strict=True):
        image["file_name"] = name
    if root is not None:
        categories = [one | {"supercategory": root} for one in truth["categories"]]
        first = {"id": 0, "name": root, "supercategory": "none"}
        assert 0 not in data_set.category_ids
        truth["categories"] = [first, *categories]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(truth))


def coco_folder(folder, splits):
    """`annotations/instances_SPLIT.json`, and images in `SPLIT/`."""
    for split, data_set in splits.items():
        write_coco(folder / "annotations" / f"instances_{split}.json", data_set)
        write_images(folder / split, data_set)


def coco_folder_of_cvat(folder, splits):
    """`annotations/instances_SPLIT.json`, and all images in `images/`."""
    for split, data_set in splits.items():
        write_coco(folder / "annotations" / f"instances_{split}.json", data_set)
        write_images(folder / "images", data_set)


def roboflow_coco(folder, splits):
    """`SPLIT/_annotations.coco.json` and images beside it; val is called valid."""
    for split, data_set in splits.items():
        own = folder / {"val": "valid"}.get(split, split)
        write_coco(own / "_annotations.coco.json", data_set, root="things")
        write_images(own, data_set)


def images_and_json(folder, splits):
    """A folder of its own for each split, with one json beside `images/`."""
    for split, data_set in splits.items():
        write_coco(folder / split / "result.json", data_set)
        write_images(folder / split / "images", data_set)


def yolo_of_roboflow(folder, splits):
    """`SPLIT/images` and `SPLIT/labels`; paths in the yaml are wrong by one level."""
    for split, data_set in splits.items():
        own = folder / {"val": "valid"}.get(split, split)
        write_images(own / "images", data_set)
        write_yolo(own / "labels", data_set)
    names = list(data_set.class_names)
    (folder / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
        f"nc: {len(names)}\nnames: {names}\n"
    )


def yolo_of_ultralytics(folder, splits):
    """`images/SPLIT` and `labels/SPLIT`; the yaml's path is elsewhere."""
    for split, data_set in splits.items():
        write_images(folder / "images" / split, data_set)
        write_yolo(folder / "labels" / split, data_set)
    lines = ["path: ../datasets/things  # its root", "train: images/train"]
    lines += ["val: images/val", "test:  # optional" if len(splits) < 3 else ""]
    lines += ["test: images/test"] * (len(splits) == 3) + ["names:"]
    lines += [f"  {label}: {name}" for label, name in enumerate(data_set.class_names)]
    (folder / "things.yaml").write_text("\n".join(lines))


def yolo_of_darknet(folder, splits):
    """Text files list the images, with labels beside them, in CVAT's own folder."""
    for split, data_set in splits.items():
        own = f"obj_{split}_data"
        write_images(folder / own, data_set)
        write_yolo(folder / own, data_set)
        lines = [f"data/{own}/{name}\n" for name in file_names(data_set)]
        (folder / f"{split}.txt").write_text("".join(lines))
    lines = [f"{split}: {split}.txt\n" for split in splits]
    names = json.dumps(data_set.class_names)
    (folder / "data.yaml").write_text(f"{''.join(lines)}names: {names}\n")


def yolo_of_label_studio(folder, splits):
    """A folder of its own for each split, without a yaml."""
    for split, data_set in splits.items():
        write_images(folder / split / "images", data_set)
        write_yolo(folder / split / "labels", data_set)
        names = "".join(f"{name}\n" for name in data_set.class_names)
        (folder / split / "classes.txt").write_text(names)
        (folder / split / "notes.json").write_text('{"categories": []}')


def write_yolo(folder, data_set):
    """Writes a text file an image."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(file_names(data_set)):
        boxes, labels, _ = data_set.objects[position]
        height, width = data_set.sizes[position].tolist()
        lines = []
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels, strict=True):
            center = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            values = (*center, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
        (folder / f"{_stem(name)}.txt").write_text("\n".join(lines))


def voc_devkit(folder, splits):
    """`ImageSets/Main/SPLIT.txt`, as the challenges have it."""
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, data_set in splits.items():
        write_images(folder / "JPEGImages", data_set)
        write_voc(folder / "Annotations", data_set)
        lines = "".join(f"{_stem(name)}\n" for name in file_names(data_set))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)


def voc_of_roboflow(folder, splits):
    """`SPLIT/` with images and xml files; val is called valid."""
    for split, data_set in splits.items():
        own = folder / {"val": "valid"}.get(split, split)
        write_images(own, data_set)
        write_voc(own, data_set)


def voc_of_labelimg(folder, splits):
    """A folder of its own for each split, in it xml files beside the images."""
    for split, data_set in splits.items():
        write_images(folder / split, data_set)
        write_voc(folder / split, data_set)
        names = "".join(f"{name}\n" for name in data_set.class_names)
        (folder / split / "predefined_classes.txt").write_text(names)


def voc_of_kaggle(folder, splits):
    """A folder of its own for each split, in it `images/` and `annotations/`."""
    for split, data_set in splits.items():
        write_images(folder / split / "images", data_set)
        write_voc(folder / split / "annotations", data_set)


def write_voc(folder, data_set):
    """Writes an xml an image, as labelImg does."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(file_names(data_set)):
        boxes, labels, _ = data_set.objects[position]
        height, width = data_set.sizes[position].tolist()
        objects = "".join(
            f"<object><name>{data_set.class_names[label]}</name>"
            "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels, strict=True)
        )
        (folder / f"{_stem(name)}.xml").write_text(
            f"<annotation><folder>photos</folder><filename>{name}</filename>"
            f"<path>/home/somebody/photos/{name}</path>"
            "<source><database>Unknown</database></source>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth>"
            f"</size><segmented>0</segmented>{objects}</annotation>"
        )


def hugging_face(folder, splits):
    """`SPLIT/metadata.jsonl` and images beside it."""
    for split, data_set in splits.items():
        own = folder / {"val": "validation"}.get(split, split)
        write_images(own, data_set)
        write_metadata(own / "metadata.jsonl", data_set, "categories")


def hugging_face_in_one_file(folder, splits):
    """`metadata.jsonl` for the images in all folders."""
    for split, data_set in splits.items():
        write_images(folder / split, data_set)
        file = folder / "metadata.jsonl"
        write_metadata(file, data_set, "category", f"{split}/")


def write_metadata(file, data_set, key, prefix=""):
    """Writes a line an image, behind those that are there."""
    with open(file, "a") as stream:
        for position, name in enumerate(file_names(data_set)):
            boxes, labels, _ = data_set.objects[position]
            objects = {
                "bbox": np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]).tolist(),
                key: [data_set.class_names[label] for label in labels],
            }
            entry = {"file_name": prefix + name, "objects": objects}
            stream.write(json.dumps(entry) + "\n")


def createml_of_roboflow(folder, splits):
    """`SPLIT/_annotations.createml.json` and images beside it; val is called valid."""
    for split, data_set in splits.items():
        own = folder / {"val": "valid"}.get(split, split)
        write_images(own, data_set)
        content = []
        for position, name in enumerate(file_names(data_set)):
            boxes, labels, _ = data_set.objects[position]
            values = np.hstack(
                [(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]]
            ).tolist()
            sides = "x", "y", "width", "height"
            annotations = [
                {
                    "label": data_set.class_names[label],
                    "coordinates": dict(zip(sides, box, strict=True)),
                }
                for box, label in zip(values, labels, strict=True)
            ]
            content.append({"image": name, "annotations": annotations})
        file = own / "_annotations.createml.json"
        file.write_text(json.dumps(content))


def assert_same(data_set, expected, tolerance=0.0):
    """The same images, in any order, with the same objects in the same order.

    Images are compared by the stems of their file names, or of their ids where the
    format gives no names; classes by their names.
    """
    assert sorted(data_set.class_names) == sorted(expected.class_names)
    assert len(data_set) == len(expected)
    positions = {_stem(name): i for i, name in enumerate(file_names(expected))}
    for position, name in enumerate(file_names(data_set)):
        other = positions.pop(_stem(name))
        np.testing.assert_array_equal(data_set.sizes[position], expected.sizes[other])
        own, its = data_set.objects[position], expected.objects[other]
        assert own.boxes.shape == its.boxes.shape
        np.testing.assert_allclose(own.boxes, its.boxes, rtol=0, atol=tolerance)
        names = [data_set.class_names[label] for label in own.labels]
        assert names == [expected.class_names[label] for label in its.labels]
        np.testing.assert_array_equal(own.crowd, its.crowd)
        if position == 0:
            pixels = data_set.read_image(position)
            np.testing.assert_array_equal(pixels, expected.read_image(other))
    counts = [len(one.ground_truth()["annotations"]) for one in (data_set, expected)]
    assert counts[0] == counts[1]


def _stem(name):
    return name.rsplit(".", 1)[0]
