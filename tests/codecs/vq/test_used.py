"""Codes that occur: numbers there and back, the nearest one for those that do not, and a codec that knows only them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.codecs.vq.quantise import FiniteScalarQuantiser, Quantiser, SimVectorQuantiser, VectorQuantiser
from rasterformer.codecs.vq.used import CODES_AT_ONCE, UsedCodes, codebook_vectors, used_codes
from rasterformer.errors import DataError, ShapeError

LINE = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [-5.0]])  # codes on a line
USED = torch.tensor([1, 3, 4])


def autoencoder() -> VQAutoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"base_width": 4, "multipliers": (1, 1), "res_blocks": 1, "attention_levels": (),
                             "middle_attention": False, "norm_groups": 2}  # fmt: skip
    quantiser = VectorQuantiser(9, 3)
    torch.nn.init.normal_(quantiser.codebook, std=0.2)
    parts = Encoder(3, 4, **sizes), Decoder(3, 4, **sizes)
    return VQAutoencoder(*parts, quantiser, z_channels=4, dim=3).eval()


def random_images(batch: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_codes_that_occur_are_counted_ones() -> None:
    assert used_codes(torch.tensor([0, 3, 0, 1, 700])).tolist() == [1, 3, 4]


def test_unused_codes_become_the_nearest_used_one_and_used_ones_stay() -> None:
    """0 and 2 lie beside 1; -5 is nearest to 1 too; 1, 10 and 11 are used themselves."""
    codes = UsedCodes(USED, LINE)
    assert len(codes) == 3 and codes.to_compact.tolist() == [0, 0, 0, 1, 2, 0]
    grid = torch.tensor([[[5, 3], [2, 4]]], dtype=torch.int16)
    assert codes.compact(grid).tolist() == [[[0, 1], [0, 2]]] and codes.compact(grid).dtype == torch.int64
    assert codes.expand(codes.compact(grid)).tolist() == [[[1, 3], [1, 4]]]


def test_compact_numbers_return_as_themselves() -> None:
    vectors = torch.randn(2 * CODES_AT_ONCE + 5, 4, generator=torch.Generator().manual_seed(0))
    used = used_codes((torch.arange(len(vectors)) % 9 == 2).long())
    codes = UsedCodes(used, vectors)
    assert torch.equal(codes.compact(codes.expand(torch.arange(len(used)))), torch.arange(len(used)))
    for code in range(0, len(vectors), 97):  # by the definition, one at a time
        nearest = min(used.tolist(), key=lambda other: float((vectors[code] - vectors[other]).square().sum()))
        assert int(codes.expand(codes.compact(torch.tensor(code)))) == nearest


def test_used_codes_with_the_same_vector_stay_apart() -> None:
    assert UsedCodes(torch.tensor([0, 2]), torch.zeros(3, 2)).compact(torch.tensor([0, 2])).tolist() == [0, 1]


def test_share_replaced_is_of_the_codes_given() -> None:
    codes = UsedCodes(USED, LINE)
    assert codes.share_replaced(torch.tensor([[1, 3], [0, 5]])) == 0.5
    assert codes.share_replaced(torch.tensor([4, 4, 4, 2], dtype=torch.int16)) == 0.25
    assert codes.share_replaced(torch.tensor([1, 3])) == codes.share_replaced(torch.empty(0, 2, 2).long()) == 0


def test_directions_count_where_the_quantiser_compares_directions() -> None:
    """Entry 0 is near entry 1 in space and has the direction of entry 2."""
    near = {}
    for normalise in (False, True):
        quantiser = VectorQuantiser(3, 2, normalise=normalise)
        with torch.no_grad():
            quantiser.codebook.copy_(torch.tensor([[1.0, 0.0], [0.5, 0.6], [9.0, 0.1]]))
        near[normalise] = int(UsedCodes(torch.tensor([1, 2]), codebook_vectors(quantiser)).to_compact[0])
    assert near == {False: 0, True: 1}


@pytest.mark.parametrize(
    "quantiser",
    [VectorQuantiser(7, 3, normalise=True), SimVectorQuantiser(7, 3), FiniteScalarQuantiser((3, 4))],
    ids=lambda quantiser: type(quantiser).__name__,
)
def test_vectors_are_what_the_decoder_sees(quantiser: Quantiser) -> None:
    vectors = codebook_vectors(quantiser)
    assert vectors.shape == (quantiser.vocab_size, quantiser.dim) and not vectors.requires_grad
    for code in range(quantiser.vocab_size):
        assert torch.equal(vectors[code], quantiser.lookup(torch.tensor([[[code]]]))[0, :, 0, 0].detach())


def test_a_codec_of_used_codes_numbers_only_them() -> None:
    model, images = autoencoder(), random_images()
    order = code_order("spiral_in", (4, 4))
    whole = CodeCodec(model, 8, order=order)
    own = whole.codes(images)
    used = own.unique()[::2]  # every second of the codes that these images have
    codec = CodeCodec(model, 8, order=order, used=used)
    assert codec.vocab_size == len(used) >= 2 and codec.used is not None
    assert 0 < codec.used.share_replaced(own) < 1
    assert torch.equal(codec.codes(images), codec.from_tokenizer(own))
    assert torch.equal(codec.to_tokenizer(codec.codes(images))[torch.isin(own, used)], own[torch.isin(own, used)])
    assert codec.encode(images).shape == (3, 16, 1) and int(codec.encode(images).max()) < len(used)
    kept = used[torch.randint(0, len(used), (2, 4, 4), generator=torch.Generator().manual_seed(1))]
    compact = codec.from_tokenizer(kept)
    assert torch.equal(codec.images(compact), whole.images(kept))
    assert torch.equal(codec.decode(codec.to_x(compact)), whole.decode(whole.to_x(kept)))


def test_a_codec_of_all_codes_has_the_tokenizers_numbers() -> None:
    codec, codes = CodeCodec(autoencoder(), 8), torch.tensor([8, 0])
    assert codec.used is None and codec.vocab_size == 9
    assert codec.from_tokenizer(codes) is codes and codec.to_tokenizer(codes) is codes


def test_no_code_that_occurs_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 4 codes occurs"):
        used_codes(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("counts", [torch.ones(4), torch.ones(2, 2, dtype=torch.int64)])
def test_counts_of_another_shape_or_dtype_are_refused(counts: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"counts are torch\.\w+ \[.*must be torch.int64 \[K\]"):
        used_codes(counts)


@pytest.mark.parametrize(
    ("used", "shown"),
    [([], "0 codes"), ([3, 1], "2 codes: 3, 1"), ([1, 1], "2 codes: 1, 1"), ([-1, 2], "-1, 2"), ([0, 6], "0, 6")],
)
def test_used_codes_that_are_none_or_unsorted_or_outside_are_refused(used: list[int], shown: str) -> None:
    with pytest.raises(DataError, match=f"used holds .*{shown}.*rising and in 0..5"):
        UsedCodes(torch.tensor(used, dtype=torch.int64), LINE)


@pytest.mark.parametrize(("used", "vectors"), [(USED.int(), LINE), (USED[None], LINE), (USED, LINE[:, 0])])
def test_tables_of_another_shape_or_dtype_are_refused(used: Tensor, vectors: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"used is torch\.int\d+ \[.*vectors are \["):
        UsedCodes(used, vectors)
