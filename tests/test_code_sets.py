"""A set of images as codes: every image once, its mirror image beside it, its condition and labels with it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rasterformer.code_sets import compacted, count_codes, make_code_set
from rasterformer.codecs.vq.used import UsedCodes, used_codes
from rasterformer.data.codes import CodeSet, load_codes, save_codes
from rasterformer.data.imageset import ImageSet
from rasterformer.errors import ConfigError, DataError, ShapeError
from rasterformer.interfaces import Batch
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.systems.vqgan.config import Config
from rasterformer.tokenizer import Tokenizer

TINY = Config(
    base_width=8,
    multipliers=(1, 1),
    res_blocks=1,
    attention_levels=(),
    middle_attention=False,
    z_channels=8,
    norm_groups=2,
    vocab_size=16,
    dim=4,
    perceptual="none",
    discriminator="none",
)
NUM_IMAGES = 35  # more than are tokenized at a time


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer.create(Recipe("vqgan", TINY, DataConfig(image_size=16), TrainingConfig()))
    made.autoencoder.eval()
    return made


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return ImageSet(
        name="toys",
        split="train",
        split_origin="all of it",
        preprocessing="none (stored at 16x16)",
        image_size=16,
        class_names=("cat", "dog"),
        labels=torch.arange(NUM_IMAGES) % 2,
        captions=tuple(f"toy {k}" for k in range(NUM_IMAGES)),
        fingerprint="ab" * 32,
        lossless=True,
        skipped=(),
        num_images=NUM_IMAGES,
        pixels=pixels,
        names=tuple(f"{k}.png" for k in range(NUM_IMAGES)),
    )


def test_variants_are_the_codes_of_the_image_and_of_its_mirror_image(tokenizer: Tokenizer, images: ImageSet) -> None:
    codes = make_code_set(tokenizer, images, mirror=True, use_labels=False).codes
    assert codes.shape == (NUM_IMAGES, 2, 8, 8)
    pixels = images.images(slice(None))
    mirrored = torch.from_numpy(pixels.numpy()[..., ::-1].copy())
    assert torch.equal(codes[:, 0].long(), tokenizer.encode(pixels))
    assert torch.equal(codes[:, 1].long(), tokenizer.encode(mirrored))
    assert len(codes.unique()) > 1  # the tokenizer tells some of them apart


def test_without_mirror_there_is_one_variant(tokenizer: Tokenizer, images: ImageSet) -> None:
    codes = make_code_set(tokenizer, images, mirror=False, use_labels=False).codes
    assert torch.equal(codes[:, 0].long(), tokenizer.encode(images.images(slice(None))))
    assert codes.shape[1] == 1


def test_what_is_known_about_images_and_tokenizer_is_kept_in_the_file(
    tokenizer: Tokenizer, images: ImageSet, tmp_path: object
) -> None:
    path = f"{tmp_path}/codes.safetensors"
    made = make_code_set(tokenizer, images, mirror=False, use_labels=True)
    save_codes(path, made)
    found = load_codes(path, tokenizer=tokenizer.fingerprint)
    assert torch.equal(found.codes.long(), made.codes.long())
    assert found.labels is not None and found.labels.tolist() == [0, 1] * 17 + [0]
    assert (found.class_names, found.names[3]) == (("cat", "dog"), "3.png")
    assert found.captions is not None and found.captions[34] == "toy 34"
    assert (found.vocab_size, found.images) == (16, "ab" * 32)
    assert found.preprocessing == "none (stored at 16x16)"


def test_classes_are_left_out_unless_asked_for(tokenizer: Tokenizer, images: ImageSet) -> None:
    made = make_code_set(tokenizer, images, mirror=False, use_labels=False)
    assert (made.labels, made.class_names) == (None, ())


def test_condition_sees_each_image_once_with_its_source_mirrored_alike(tokenizer: Tokenizer, images: ImageSet) -> None:
    sources = replace(images, pixels=255 - images.images(slice(None)), sources=None)
    seen: list[tuple[int, bool]] = []

    def corner(batch: Batch, index: Tensor, mirrored: bool) -> Tensor:
        assert batch.cond.source is not None
        assert torch.equal(batch.cond.source, 255 - batch.images)  # also where both are mirrored
        seen.extend((k, mirrored) for k in index.tolist())
        return batch.cond.source[:, 0, :2, :2].long()

    made = make_code_set(
        tokenizer,
        replace(images, sources=sources),
        mirror=True,
        condition=corner,
        condition_vocab_size=256,
        condition_tokenizer="77ee",
        use_labels=False,
    )
    assert sorted(seen) == [(k, mirrored) for k in range(NUM_IMAGES) for mirrored in (False, True)]
    pixels = sources.images(slice(None))
    assert made.condition is not None
    assert torch.equal(made.condition[:, 0].long(), pixels[:, 0, :2, :2].long())
    assert torch.equal(made.condition[:, 1, :, 0].long(), pixels[:, 0, :2, 15].long())  # the right border, now left
    assert (made.condition_vocab_size, made.condition_tokenizer) == (256, "77ee")


def test_progress_ends_with_all_images(tokenizer: Tokenizer, images: ImageSet) -> None:
    told: list[tuple[int, int]] = []
    make_code_set(
        tokenizer, images, mirror=False, use_labels=False, on_progress=lambda done, every: told.append((done, every))
    )
    assert told == [(32, NUM_IMAGES), (NUM_IMAGES, NUM_IMAGES)]


def test_half_a_condition_is_refused(tokenizer: Tokenizer, images: ImageSet) -> None:
    with pytest.raises(
        ConfigError, match="condition is None, condition_vocab_size = 16 and condition_tokenizer = None"
    ):
        make_code_set(tokenizer, images, mirror=False, condition_vocab_size=16, use_labels=False)


def test_no_images_are_refused(tokenizer: Tokenizer, images: ImageSet) -> None:
    empty = replace(images, num_images=0, pixels=images.images(slice(0)))
    with pytest.raises(DataError, match="toys, train: there are no images"):
        make_code_set(tokenizer, empty, mirror=False, use_labels=False)


def test_labels_of_a_set_without_classes_are_refused(tokenizer: Tokenizer, images: ImageSet) -> None:
    with pytest.raises(DataError, match="'toys' has no classes"):
        make_code_set(tokenizer, replace(images, labels=None, class_names=()), mirror=False, use_labels=True)


def test_images_of_another_size_than_a_multiple_of_the_factor_are_refused(
    tokenizer: Tokenizer, images: ImageSet
) -> None:
    with pytest.raises(ShapeError, match="15x15"):
        make_code_set(
            tokenizer,
            replace(images, image_size=15, pixels=images.images(slice(None))[..., :15, :15]),
            mirror=False,
            use_labels=False,
        )


def toy_codes() -> CodeSet:
    """Images of two codes and their mirror images: 6 codes, of which 0, 2 and 5 occur."""
    codes = torch.tensor([[[[2, 0]], [[0, 2]]], [[[5, 2]], [[2, 5]]]] * 40, dtype=torch.int16)
    return CodeSet(
        codes=codes, condition=codes[..., :1], labels=None, class_names=(), names=("a", "b") * 40, captions=None,
        vocab_size=6, condition_vocab_size=6, tokenizer="77ee", condition_tokenizer="77ee", images="ab" * 32,
        preprocessing="none",
    )  # fmt: skip


def test_codes_are_counted_over_all_images_and_variants() -> None:
    assert count_codes(toy_codes()).tolist() == [80, 0, 160, 0, 0, 80]


def test_compacted_codes_are_numbers_of_those_that_occur_and_the_condition_stays() -> None:
    """2 is left out as well: on the line of vectors it lies at 5."""
    code_set = toy_codes()
    vectors = torch.tensor([[0.0], [9.0], [4.0], [9.0], [9.0], [5.0]])
    assert used_codes(count_codes(code_set)).tolist() == [0, 2, 5]
    found = compacted(code_set, UsedCodes(torch.tensor([0, 5]), vectors))
    assert found.codes[:2].tolist() == [[[[1, 0]], [[0, 1]]], [[[1, 1]], [[1, 1]]]]
    assert found.vocab_size == 2 and found.codes.shape == code_set.codes.shape
    assert found.condition is not None and code_set.condition is not None
    assert torch.equal(found.condition, code_set.condition) and found.condition_vocab_size == 6
    assert (found.names, found.tokenizer) == (code_set.names, "77ee")


def test_codes_outside_of_the_vocabulary_are_not_counted() -> None:
    with pytest.raises(DataError, match="codes go from 0 to 5; this codebook has 0 to 4"):
        count_codes(replace(toy_codes(), vocab_size=5))


def test_used_codes_of_another_codebook_are_refused() -> None:
    with pytest.raises(DataError, match="the codes are of 6, but used codes of 7 are given"):
        compacted(toy_codes(), UsedCodes(torch.tensor([0, 2, 5]), torch.zeros(7, 1)))
