"""Says in a line what a data set holds."""

import numpy as np

from jaxdet.data.dataset import DataSet

_LISTED = 20  # classes, at most


def summarize(data_set: DataSet) -> str:
    """Returns one line: images, objects, those of each class, images without objects.

    Of more than twenty classes those with most objects are named.
    """
    labels = [one.labels for one in data_set.objects]
    count = len(data_set.class_names)
    numbers = np.bincount(np.concatenate([[], *labels]).astype(int), minlength=count)
    shown = range(count)
    if count > _LISTED:
        shown = np.argsort(-numbers, kind="stable")[:_LISTED]
    classes = [f"{data_set.class_names[label]} {numbers[label]}" for label in shown]
    if count > _LISTED:
        rest = count - _LISTED
        classes.append(
            f"{numbers.sum() - numbers[shown].sum()} of {rest} other classes"
        )
    empty = sum(not len(own) for own in labels)
    return (
        f"{data_set.name}: {len(data_set)} images, {empty} of them without objects; "
        f"{numbers.sum()} objects: {', '.join(classes)}"
    )
