"""Images and masks as users give them: one or many, Pillow, numpy or tensors; and messages where it is something else."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rasterformer.errors import ConfigError, ShapeError
from rasterformer.given_images import to_batch, to_mask, to_masks, to_pictures
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.image_transformer.config import Config
from rasterformer.tasks import Inpaint, Task

TINY = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "dropout_prob": 0.0, "block_length": 16}
DMOL = {"distribution": "dmol", "num_mixtures": 2, "memory_length": 16, "encoder_depth": 1, "encoder_cell": "pixel"}
DATA = DataConfig(image_size=4)


def make(task: Task | None = None) -> System:
    config = Config(**TINY, **(DMOL if task else {"distribution": "categorical"}))
    system = System.create(Recipe("image_transformer", config, DATA, TrainingConfig(), task=task))
    system.model.eval()
    return system


def picture(side: int = 4, colour: tuple[int, int, int] = (10, 20, 30)) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def upper_half(side: int = 4) -> np.ndarray[Any, Any]:
    mask = np.zeros((side, side), dtype=bool)
    mask[: side // 2] = True
    return mask


def test_one_image_is_a_list_of_one() -> None:
    one, several = to_batch(picture(), (3, 4, 4), DATA), to_batch([picture()], (3, 4, 4), DATA)
    assert one.shape == (1, 3, 4, 4) and torch.equal(one, several)
    assert one[0, :, 0, 0].tolist() == [10, 20, 30]
    (only,) = to_pictures(picture(5))
    assert only.shape == (3, 5, 5) and only[:, 4, 4].tolist() == [10, 20, 30]


def test_one_image_and_a_numpy_mask_are_completed_as_a_list_and_a_tensor_are() -> None:
    system = make()
    found = system.complete(picture(), known=upper_half(), as_tensor=True)
    assert torch.equal(found, system.complete([picture()], known=torch.from_numpy(upper_half()), as_tensor=True))
    assert found.shape == (1, 1, 3, 4, 4)
    assert found[0, 0, :, :2].flatten(1).unique(dim=1).tolist() == [[10], [20], [30]]


@pytest.mark.parametrize("way", ["restore", "transform"])
def test_one_image_and_one_numpy_mask_are_restored_as_lists_of_tensors_are(way: str) -> None:
    draw = getattr(make(Inpaint()), way)
    (found,) = draw(picture(), known=upper_half(), n=2, as_tensor=True)
    (expected,) = draw([picture()], known=[torch.from_numpy(upper_half())], n=2, as_tensor=True)
    assert torch.equal(found, expected) and found.shape == (2, 3, 4, 4)


def test_a_numpy_mask_keeps_its_values_and_may_be_read_only() -> None:
    mask = upper_half()
    mask.setflags(write=False)
    found = to_mask(mask)
    assert found.dtype == torch.bool and found.tolist() == mask.tolist()


@pytest.mark.parametrize("stack", [np.stack, list, tuple, lambda masks: torch.from_numpy(np.stack(masks))])
def test_masks_come_one_for_each_image(stack: Any) -> None:
    found = to_masks(stack([upper_half(), ~upper_half()]), 2)
    assert [mask.tolist() for mask in found] == [upper_half().tolist(), (~upper_half()).tolist()]


@pytest.mark.parametrize("known", [upper_half(), torch.from_numpy(upper_half()), [upper_half()]])
def test_one_mask_is_not_enough_for_two_images(known: Any) -> None:
    with pytest.raises(ShapeError, match="known has 1 masks for 2 images"):
        to_masks(known, 2)


def test_a_mask_that_is_a_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"known has a Image; a mask is a tensor or a numpy array, bool \[h, w\]"):
        to_masks([Image.new("1", (4, 4))], 1)


@pytest.mark.parametrize(
    ("images", "kind"),
    [("cat.png", "str"), (5, "int"), (None, "NoneType"), (np.zeros((4, 4, 3), dtype=np.uint8), "ndarray"), (["a"], "str")],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_its_kind(images: Any, kind: str) -> None:
    for read in (lambda: to_batch(images, (3, 4, 4), DATA), lambda: to_pictures(images)):
        with pytest.raises(ConfigError, match=f"images has a {kind}. Give Pillow images"):
            read()


@pytest.mark.parametrize("images", [[], (), torch.zeros(0, 3, 4, 4, dtype=torch.uint8)])
def test_no_images_are_refused(images: Any) -> None:
    for read in (lambda: to_batch(images, (3, 4, 4), DATA), lambda: to_pictures(images)):
        with pytest.raises(ConfigError, match="no images were given"):
            read()


@pytest.mark.parametrize("images", [torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 3, 4, 4)])
def test_a_tensor_of_another_shape_or_dtype_is_refused(images: Tensor) -> None:
    for read in (lambda: to_batch(images, (3, 4, 4), DATA), lambda: to_pictures(images)):
        with pytest.raises(ShapeError, match=r"images are torch\.(uint8 \[3, 4, 4\]|float32 \[1, 3, 4, 4\])"):
            read()


def test_a_small_image_is_refused_by_its_number() -> None:
    with pytest.raises(ShapeError, match="image 1 is 3x3; this model needs at least 4x4"):
        to_batch([picture(), picture(3)], (3, 4, 4), DATA)
