"""Against diffusers itself, where it is installed: what we export it reconstructs alike, and what it saves we read."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.quantise import VectorQuantiser
from rasterformer.weights.export import WEIGHTS, export_diffusers
from rasterformer.weights.layouts import from_diffusers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers: Any = pytest.importorskip("diffusers")

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
LARGEST_DIFFERENCE = 1e-5  # float32, in units of an image in -1..1


def ours(*, normalise: bool, attention: tuple[int, ...], norm_groups: int = 4) -> VQAutoencoder:
    torch.manual_seed(3)
    sizes = {
        "base_width": 8,
        "multipliers": (1, 2, 4),
        "res_blocks": 2,
        "attention_levels": attention,
        "norm_groups": norm_groups,
    }
    encoder, decoder = Encoder(3, 6, **sizes), Decoder(3, 6, **sizes)
    return VQAutoencoder(encoder, decoder, VectorQuantiser(16, 4, normalise=normalise), z_channels=6, dim=4).eval()


def randomise(model: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))


@torch.no_grad()
def largest_difference(own: VQAutoencoder, theirs: Any) -> float:
    latents = theirs.encode(IMAGES).latents
    assert (own.encode(IMAGES) - latents).abs().max() < LARGEST_DIFFERENCE
    codes = own.quantiser.nearest(own.encode(IMAGES))
    assert torch.equal(theirs.quantize(latents)[2][2], codes.flatten()) and len(codes.unique()) > 3
    return float((own(IMAGES)[0] - theirs(IMAGES).sample).abs().max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", [(), (2,), (0, 1)])
@pytest.mark.parametrize("normalise", [False, True])
def test_diffusers_reconstructs_what_we_export_as_we_do(
    normalise: bool, attention: tuple[int, ...], tmp_path: Path
) -> None:
    own = ours(normalise=normalise, attention=attention)
    randomise(own)
    export_diffusers(tmp_path / "out", own, image_size=32)
    theirs, report = diffusers.VQModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert largest_difference(own, theirs.eval()) < LARGEST_DIFFERENCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("middle_attention", [True, False])
def test_we_reconstruct_what_diffusers_saves_as_it_does(middle_attention: bool, tmp_path: Path) -> None:
    theirs = diffusers.VQModel(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=5,
        vq_embed_dim=3,
        num_vq_embeddings=12,
        norm_num_groups=2,
        mid_block_add_attention=middle_attention,
    ).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    imported = from_diffusers(load_file(tmp_path / "out" / WEIGHTS), config)
    shape = imported.shape
    assert (shape.res_blocks, shape.attention_levels, shape.middle_attention) == (1, (2,), middle_attention)
    sizes = {
        "base_width": shape.base_width,
        "multipliers": shape.multipliers,
        "res_blocks": shape.res_blocks,
        "attention_levels": shape.attention_levels,
        "middle_attention": shape.middle_attention,
        "norm_groups": shape.norm_groups,
    }
    encoder, decoder = Encoder(3, 5, **sizes), Decoder(3, 5, **sizes)
    own = VQAutoencoder(encoder, decoder, VectorQuantiser(12, 3), z_channels=5, dim=3).eval()
    own.load_state_dict(imported.state)
    assert largest_difference(own, theirs) < LARGEST_DIFFERENCE
