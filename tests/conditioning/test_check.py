"""A condition that a network was not trained with is refused, by name and with what was received."""

import pytest
import torch
from torch import Tensor

from rasterformer.conditioning.check import check_label, check_text
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond


@pytest.mark.parametrize(("label", "num_classes"), [(None, 0), (torch.tensor([0, 4]), 5), (torch.tensor([0, 0]), 1)])
def test_the_classes_of_a_network_are_taken(label: Tensor | None, num_classes: int) -> None:
    check_label(label, num_classes=num_classes, batch_size=2)


@pytest.mark.parametrize(
    ("label", "num_classes", "message"),
    [
        (None, 5, "label is missing: this model was trained with 5 classes"),
        (torch.tensor([0, 1]), 0, "label was given, but this model was trained without classes"),
        (torch.tensor([0, 5]), 5, r"label = \[0, 5\] must have one class index in 0\.\.4 for each of 2 images"),
        (torch.tensor([-1, 0]), 5, r"label = \[-1, 0\] must have one class index in 0\.\.4 for each of 2 images"),
        (torch.tensor([3]), 5, r"label = \[3\] must have one class index in 0\.\.4 for each of 2 images"),
        (torch.tensor([[3], [1]]), 5, r"label = \[\[3\], \[1\]\] must have one class index"),
    ],
)
def test_other_classes_are_refused(label: Tensor | None, num_classes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_label(label, num_classes=num_classes, batch_size=2)


TEXTS = [Cond(text=torch.zeros(2, 3, 4)), Cond(text_tokens=torch.zeros(2, 3, dtype=torch.int64))]


@pytest.mark.parametrize("cond", TEXTS)
def test_texts_are_for_networks_of_texts_and_one_for_each_image(cond: Cond) -> None:
    check_text(cond, takes_text=True, batch_size=2)
    with pytest.raises(ConfigError, match="text was given, but this model was trained without texts"):
        check_text(cond, takes_text=False, batch_size=2)
    with pytest.raises(ConfigError, match="text has 2 entries for 3 images"):
        check_text(cond, takes_text=True, batch_size=3)


def test_no_text_is_no_mistake_here() -> None:
    for takes_text in (True, False):
        check_text(Cond(), takes_text=takes_text, batch_size=2)
