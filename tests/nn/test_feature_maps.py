"""Memory layout and norm of feature maps."""

import pytest
import torch

from rasterformer.errors import ConfigError
from rasterformer.nn.feature_maps import group_norm, laid_out


def test_maps_lie_channels_last_where_groups_are_wide() -> None:
    maps = torch.zeros(1, 8, 2, 2)
    assert laid_out(maps, group_width=4).is_contiguous(memory_format=torch.channels_last)
    assert laid_out(maps, group_width=3).is_contiguous()


@torch.no_grad()
def test_norm_is_of_each_group_of_channels_of_each_image() -> None:
    maps = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = group_norm(4, 2).double()(maps)
    for image in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            part = maps[image, group]
            expected = (part - part.mean()) / (part.var(correction=0) + 1e-6).sqrt()
            torch.testing.assert_close(found[image, group], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [0, 5])
def test_groups_that_do_not_divide_channels_are_refused(groups: int) -> None:
    with pytest.raises(
        ConfigError, match=f"norm_groups = {groups} does not divide 12 channels.* 1, 2, 3, 4, 6, 12, or"
    ):
        group_norm(12, groups)
