from jaxdet.data.summary import summarize
from tests.data.in_memory import in_memory_data_set

BOX = (0, 0, 5, 5)


def test_images_objects_and_classes():
    objects = [[], [(*BOX, 1), (*BOX, 1, True)], [(*BOX, 0)]]
    assert summarize(in_memory_data_set([(9, 9)] * 3, objects)) == (
        "in memory: 3 images, 1 of them without objects; 3 objects: cat 1, dog 2"
    )
    assert summarize(in_memory_data_set([(9, 9)])).endswith("0 objects: cat 0, dog 0")


def test_the_most_frequent_of_many_classes():
    objects = [[(*BOX, label)] * (label + 1) for label in range(23)]
    names = [f"c{i}" for i in range(23)]
    text = summarize(in_memory_data_set([(9, 9)] * 23, objects, class_names=names))
    assert "276 objects: c22 23, c21 22, " in text
    assert text.endswith(", c3 4, 6 of 3 other classes")
