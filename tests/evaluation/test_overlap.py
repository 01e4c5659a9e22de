"""Identical images are found, others are not."""

import torch

from rasterformer.evaluation.overlap import image_digests, num_identical


def test_counts_held_out_images_that_are_training_images():
    rng = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8, generator=rng)
    held_out = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=rng)
    held_out[1] = training[4]
    held_out[3] = training[4]
    held_out[4] = training[0]
    held_out[4, 2, 3, 3] ^= 1  # one sub-pixel differs by one
    assert num_identical(held_out.split(2), training.split(4)) == 2
    assert num_identical(training.split(4), held_out.split(2)) == 1


def test_digest_depends_on_pixels_and_shape_and_not_on_memory_layout():
    image = torch.arange(24, dtype=torch.uint8).reshape(1, 3, 2, 4)
    [digest] = image_digests([image])
    assert [digest] == list(image_digests([image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)]))
    assert [digest] != list(image_digests([image.reshape(1, 3, 4, 2)]))
