import zlib

import numpy as np

from jaxdet.training.checksum import by_path, digest


def test_the_digest_is_that_of_names_shapes_types_and_values():
    tree = {"b": np.array([1.0], np.float32), "a": {"c": np.array(7, np.uint8)}}
    assert [*by_path(tree)] == ["a/c", "b"]
    content = b"a/c uint8[]" + b"\x07" + b"b float32[1]" + b"\x00\x00\x80\x3f"
    assert digest(tree) == f"{zlib.crc32(content):08x}"
    others = [{**tree, "b": x} for x in (np.ones(1), np.ones((1, 1)), -tree["b"])]
    others += [{"a": tree["a"], "d": tree["b"]}]
    assert len({digest(tree), *map(digest, others)}) == 5
