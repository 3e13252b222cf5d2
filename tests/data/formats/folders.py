"""Writes small data sets as annotation tools do, each in its own layout.

Objects are those of a `DataSet`; its images are symbolic links, or red where it has no
files.
"""

import json

import PIL.Image


def write_images(data_set, folder, images=None):
    """Puts the images of a data set in a folder; returns their file names.

    Args:
      data_set: whose image ids, if `images` is None, name them `<id>.jpg`.
      folder: is made.
      images: paths of the files to link to, one an image; None: red images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for position, image_id in enumerate(data_set.image_ids):
        if images is None:
            names.append(f"{image_id}.jpg")
            height, width = data_set.sizes[position].tolist()
            PIL.Image.new("RGB", (width, height), "red").save(folder / names[-1])
        else:
            names.append(images[position].name)
            (folder / names[-1]).symlink_to(images[position].resolve())
    return names


def rows_of(data_set, position):
    """Yields the class name and the corners of each object, as Python's numbers."""
    boxes, labels, _ = data_set.objects[position]
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        yield data_set.class_names[label], box


def write_yolo(data_set, images_folder, labels_folder, images=None):
    """Writes a text file an image; the yaml is the caller's."""
    names = write_images(data_set, images_folder, images)
    labels_folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(names):
        height, width = data_set.sizes[position].tolist()
        lines = []
        for class_name, (x1, y1, x2, y2) in rows_of(data_set, position):
            center = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
            values = (*center, (x2 - x1) / width, (y2 - y1) / height)
            label = data_set.class_names.index(class_name)
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]))
        file = (labels_folder / name).with_suffix(".txt")
        file.write_text("\n".join(lines))


def write_voc_xml(data_set, images_folder, xml_folder, images=None):
    """Writes an xml an image, as labelImg does."""
    names = write_images(data_set, images_folder, images)
    xml_folder.mkdir(parents=True, exist_ok=True)
    for position, name in enumerate(names):
        height, width = data_set.sizes[position].tolist()
        objects = "".join(
            f"<object><name>{class_name}</name><pose>Unspecified</pose>"
            f"<truncated>0</truncated><difficult>0</difficult><bndbox>"
            f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for class_name, (x1, y1, x2, y2) in rows_of(data_set, position)
        )
        text = (
            f"<annotation><folder>photos</folder><filename>{name}</filename>"
            f"<path>/home/somebody/photos/{name}</path>"
            "<source><database>Unknown</database></source>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth>"
            f"</size><segmented>0</segmented>{objects}</annotation>"
        )
        (xml_folder / name).with_suffix(".xml").write_text(text)


def write_metadata_jsonl(data_set, folder, images=None, *, key="categories"):
    """Writes Hugging Face's `metadata.jsonl` beside the images."""
    names = write_images(data_set, folder, images)
    with open(folder / "metadata.jsonl", "w") as file:
        for position, name in enumerate(names):
            rows = list(rows_of(data_set, position))
            boxes = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in rows]
            objects = {"bbox": boxes, key: [class_name for class_name, _ in rows]}
            file.write(json.dumps({"file_name": name, "objects": objects}) + "\n")


def write_createml(data_set, folder, images=None):
    """Writes CreateML's json beside the images, under Roboflow's name."""
    content = [
        {
            "image": name,
            "annotations": [
                {
                    "label": class_name,
                    "coordinates": {
                        "x": (x1 + x2) / 2,
                        "y": (y1 + y2) / 2,
                        "width": x2 - x1,
                        "height": y2 - y1,
                    },
                }
                for class_name, (x1, y1, x2, y2) in rows_of(data_set, position)
            ],
        }
        for position, name in enumerate(write_images(data_set, folder, images))
    ]
    (folder / "_annotations.createml.json").write_text(json.dumps(content))
