"""Tiles, scales and mirror images, asked for on the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import evaluate
from experiments.data_option import DataOption
from experiments.views_option import ViewsOption
from jaxdet.data.dataset import DataError
from jaxdet.inference import load
from tests.detectors.test_image_pyramid import find_at_the_left, find_white
from tests.inference.test_load import trained


def model(predict=find_white):
    return trained(
        lambda variables, batch: predict(variables["score"], batch),
        num_classes=2,
        canvases=((64, 64),),
    )


def test_nothing_is_changed_by_default():
    assert ViewsOption().tiles_config() is None
    assert ViewsOption().apply(given := model()) is given


def test_options_become_configs():
    config = ViewsOption(tiles=320, overlap=0.5).tiles_config(batch_size=3)
    assert (config.size, config.overlap, config.batch_size) == (320, 0.5, 3)
    assert ViewsOption(tiles=320).tiles_config().overlap == 0.2
    views = ViewsOption(flip=True, scales=(0.5, 1.0), merge="wbf").apply(model())
    config = views.detector.predict.keywords["config"]
    assert config.flip and config.scales == (0.5, 1.0) and config.fusion_iou == 0.65
    config = ViewsOption(flip=True).apply(model()).detector.predict.keywords["config"]
    assert config.scales == (1.0,) and config.fusion_iou is None


def test_the_mirror_image_changes_nothing_for_a_detector_that_it_does_not():
    image = np.zeros((50, 40, 3), np.uint8)
    image[10:20, 4:12] = 255
    expected = load.make_detect(model())(image)
    for options in ({"flip": True}, {"flip": True, "merge": "wbf"}):
        found = load.make_detect(ViewsOption(**options).apply(model()))(image)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
        np.testing.assert_allclose(found.scores, expected.scores)
        assert found.names == expected.names == ("cat",)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"overlap": 0.1}, r"--overlap 0\.1 without --tiles"),
        ({"tiles": 0}, "--tiles 0: size is 0; it must be at least 1"),
        ({"tiles": 9, "overlap": 1.0}, r"--tiles 9: overlap is 1\.0"),
        ({"scales": (0.0,)}, r"--scales \(0\.0,\): scales"),
        ({"merge": "nms"}, "--merge nms without --flip or --scales"),
        ({"flip": True, "merge": "wbf"}, "--merge wbf averages boxes"),
    ],
)
def test_what_does_not_go_together(options, problem):
    given = model(find_at_the_left)
    given = given._replace(detector=given.detector._replace(has_masks=True))
    with pytest.raises(DataError, match=problem):
        ViewsOption(**options).apply(given)
        ViewsOption(**options).tiles_config()


def test_an_exported_program_has_one_view():
    ViewsOption(tiles=64).check_artifact()
    with pytest.raises(DataError, match="--artifact"):
        ViewsOption(flip=True).check_artifact()


def test_small_objects_count_in_tiles(tmp_path, monkeypatch, capsys):
    """Two white squares, of which the whole image shows the detector one box."""
    image = np.zeros((200, 300, 3), np.uint8)
    corners = [(10, 10, 20, 20), (250, 150, 270, 170)]
    for x1, y1, x2, y2 in corners:
        image[y1:y2, x1:x2] = 255
    Image.fromarray(image).save(tmp_path / "0.png")
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "iscrowd": 0}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
        for i, (x1, y1, x2, y2) in enumerate(corners)
    ]
    truth = {
        "images": [{"id": 1, "file_name": "0.png", "height": 200, "width": 300}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(truth))
    given = model()
    monkeypatch.setattr(evaluate, "load_detector", lambda *args, **options: given)
    results = {}
    for tiles in (None, 64):
        found = tmp_path / f"{tiles}.json"
        evaluate.main(
            source=DataOption((str(file),), images=(tmp_path,)),
            views=ViewsOption(tiles=tiles),
            json_file=found,
        )
        results[tiles] = [one["bbox"] for one in json.loads(found.read_text())]
    assert len(results[None]) <= 1
    for one in objects:
        assert one["bbox"] in results[64] and one["bbox"] not in results[None]
    with pytest.raises(DataError, match="--tiles 64 and --proposal-file"):
        evaluate.main(views=ViewsOption(tiles=64), proposal_file=file)
