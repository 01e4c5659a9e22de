"""Colours of label maps: one for each label, everywhere the same, and neighbours easy to tell apart."""

import torch

from rasterformer.data.palette import label_colours


def all_labels() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)


def test_every_label_has_a_colour_of_its_own() -> None:
    colours = label_colours(all_labels())
    assert colours.shape == (1, 3, 16, 16) and colours.dtype == torch.uint8 and colours.is_contiguous()
    assert len({tuple(colour) for colour in colours[0].flatten(1).T.tolist()}) == 256


def test_a_labels_colour_does_not_depend_on_where_it_lies() -> None:
    table = label_colours(all_labels())[0].flatten(1)  # [3, 256]
    labels = torch.randint(0, 256, (2, 1, 3, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colours = label_colours(labels.expand(-1, 3, -1, -1))
    for b in range(2):
        for row in range(3):
            for col in range(5):
                assert torch.equal(colours[b, :, row, col], table[:, int(labels[b, 0, row, col])])


def test_the_first_labels_are_easy_to_tell_apart() -> None:
    table = label_colours(all_labels())[0].flatten(1).T.double()[:12]
    distance = torch.cdist(table, table) + 1e9 * torch.eye(12, dtype=torch.float64)
    assert float(distance.min()) > 40  # of 255 for each colour
