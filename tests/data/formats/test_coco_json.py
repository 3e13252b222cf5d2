import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.formats.coco_json import find_images, find_root_categories


def test_images_are_in_the_first_folder_that_holds_all(tmp_path):
    images = [{"id": 1, "file_name": "b.png"}, {"id": 2, "file_name": "deep/a.png"}]
    others, own = tmp_path / "others", tmp_path / "own"
    for file in (others / "b.png", own / "b.png", own / "deep" / "a.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    paths = find_images(images, [tmp_path / "gone", others, own])
    assert paths == (f"{own}/b.png", f"{own}/deep/a.png")
    with pytest.raises(DataError, match=r"1 of 2 .* the first is .*others/deep/a\.png"):
        find_images(images, [tmp_path / "gone", others])


def test_a_root_holds_others_and_has_no_objects():
    root = {"id": 0, "name": "things", "supercategory": "none"}
    cat = {"id": 1, "name": "cat", "supercategory": "things"}
    box = {"id": 1, "image_id": 1, "category_id": 1}

    def find(root, cat, box):
        content = {"annotations": [box], "categories": [root, cat]}
        return find_root_categories(content)

    assert find(root, cat, box) == [root]
    assert find(root, cat, box | {"category_id": [0]}) == [root]  # bad, refused later
    del root["supercategory"]
    assert find(root, cat, box) == [root]
    assert find(root, cat, box | {"category_id": 0}) == []
    assert find(root, cat | {"supercategory": "animals"}, box) == []
    # As COCO's person is one; a class that some split has no object of.
    assert find(root | {"supercategory": "things"}, cat, box) == []
