"""What is known is carried on into what is not: each missing pixel is a nearest known one, and known ones stay."""

import pytest
import torch

from rasterformer.conditioning.carry_on import NOTHING_KNOWN, carry_on
from rasterformer.errors import ShapeError


def random_case(seed: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (3, 3, 9, 7), generator=rng, dtype=torch.uint8)
    return images, torch.rand(3, 9, 7, generator=rng) < share


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_is_one_of_the_nearest_known_ones(seed: int, share: float) -> None:
    images, known = random_case(seed, share)
    known[:, 4, 3] = True
    filled = carry_on(images, known)
    for image, mask, result in zip(images, known, filled, strict=True):
        places = mask.nonzero().tolist()
        for row in range(9):
            for col in range(7):
                distance = {(r, c): abs(r - row) + abs(c - col) for r, c in places}
                nearest = [image[:, r, c].tolist() for (r, c), d in distance.items() if d == min(distance.values())]
                assert result[:, row, col].tolist() in nearest


def test_known_pixels_stay_and_unknown_ones_are_not_looked_at() -> None:
    images, known = random_case(0, 0.4)
    filled = carry_on(images, known)
    assert torch.equal(filled.permute(0, 2, 3, 1)[known], images.permute(0, 2, 3, 1)[known])
    others = torch.where(known[:, None], images, 255 - images)
    assert torch.equal(carry_on(others, known), filled)


def test_the_last_known_row_goes_on_downwards() -> None:
    images, _ = random_case(1, 0.5)
    known = torch.zeros(3, 9, 7, dtype=torch.bool)
    known[:, :4] = True
    assert torch.equal(carry_on(images, known)[:, :, 4:], images[:, :, 3:4].expand(-1, -1, 5, -1))


def test_images_do_not_depend_on_each_other_and_one_without_a_known_pixel_is_grey() -> None:
    images, known = random_case(2, 0.2)
    known[1] = False
    filled = carry_on(images, known)
    assert bool((filled[1] == NOTHING_KNOWN).all())
    assert torch.equal(filled[2:], carry_on(images[2:], known[2:]))


def test_other_shapes_are_refused() -> None:
    images, known = random_case(0, 0.5)
    with pytest.raises(ShapeError, match=r"torch.float32 \[3, 3, 9, 7\]"):
        carry_on(images.float(), known)
    with pytest.raises(ShapeError, match=r"torch.bool \[3, 9, 6\]"):
        carry_on(images, known[..., :6])
