import dataclasses
import logging

import pytest

from jaxdet.data.dataset import DataError
from jaxdet.data.holdout import hold_out
from tests.data.in_memory import in_memory_data_set

NAMES = tuple(f"img_{i}.jpg" for i in range(1000))


def of_names(names):
    return in_memory_data_set([(4, 5)] * len(names), image_ids=names)


def test_it_is_a_tenth_whatever_the_other_images_are():
    training, validation = hold_out(of_names(NAMES))
    held = set(validation.image_ids)
    assert held | set(training.image_ids) == set(NAMES)
    assert len(held) + len(training) == 1000 and 70 < len(held) < 130
    # Of img_0 to img_39 only these have a SHA-256 that begins below 0x1999, a tenth.
    assert held & set(NAMES[:40]) == {"img_7.jpg", "img_31.jpg", "img_32.jpg"}
    others = of_names(NAMES[300:][::-1])
    assert set(hold_out(others)[1].image_ids) == held & set(NAMES[300:])
    assert held > set(hold_out(of_names(NAMES), 0.05)[1].image_ids)


def test_file_names_count_and_not_ids():
    numbered = dataclasses.replace(
        of_names(NAMES[:40]), image_ids=tuple(range(40)), file_names=NAMES[:40]
    )
    assert hold_out(numbered)[1].image_ids == (7, 31, 32)


def test_one_image_at_least_is_in_each_part():
    none, all_of_them = ("img_5.jpg", "img_25.jpg"), ("img_7.jpg", "img_31.jpg")
    for names, share in ((none, 0.1), (all_of_them, 0.1), (NAMES[:3], 0.999)):
        training, validation = hold_out(of_names(names), share)
        assert len(training) >= 1 and len(validation) >= 1
    assert hold_out(of_names(none))[1].image_ids == ("img_25.jpg",)


def test_augmented_copies_are_together():
    copies = [f"{name}_jpg.rf.{i}a{i}.jpg" for name in "abcdefgh" for i in range(3)]
    for share in (0.2, 0.5):
        training, validation = hold_out(of_names(copies), share)
        parts = [{one[0] for one in part.image_ids} for part in (training, validation)]
        assert not parts[0] & parts[1] and parts[0] | parts[1] == set("abcdefgh")


@pytest.mark.parametrize(
    ("names", "share"),
    [(NAMES, 0), (NAMES[:1], 0.5), (["a_jpg.rf.1.jpg", "a_jpg.rf.2.jpg"], 0.5)],
)
def test_nothing_is_set_aside(names, share, caplog):
    data_set = of_names(names)
    with caplog.at_level(logging.INFO):
        assert hold_out(data_set, share) == (data_set, None)
    assert caplog.messages == ["in memory: no images are set aside to validate on"]


@pytest.mark.parametrize("share", [1, -0.1, float("nan")])
def test_shares_out_of_range(share):
    with pytest.raises(DataError, match=f"share is {share}; allowed: 0, or"):
        hold_out(of_names(NAMES), share)


def test_it_is_said(caplog):
    with caplog.at_level(logging.INFO):
        hold_out(of_names(NAMES[:40]))
    assert "3 of 40 images, chosen by their names, are set aside" in caplog.text
