import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder
from rasterformer.codecs.vq.quantise import FiniteScalarQuantiser, Quantiser, SimVectorQuantiser, VectorQuantiser
from rasterformer.errors import CheckpointError
from rasterformer.weights.export import WEIGHTS, export_diffusers
from rasterformer.weights.layouts import from_diffusers


def model(quantiser: Quantiser, *, middle_attention: bool = True) -> VQAutoencoder:
    torch.manual_seed(3)
    sizes = {
        "base_width": 8,
        "multipliers": (1, 2, 2),
        "res_blocks": 2,
        "attention_levels": (1,),
        "middle_attention": middle_attention,
        "norm_groups": 4,
    }
    autoencoder = VQAutoencoder(
        Encoder(3, 6, **sizes), Decoder(3, 6, **sizes), quantiser, z_channels=6, dim=quantiser.dim
    )
    with torch.no_grad():  # away from zeros and ones, so that every weight counts
        for parameter in autoencoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return autoencoder.eval()


QUANTISERS = {
    "nearest": lambda: VectorQuantiser(16, 4),
    "nearest, length 1": lambda: VectorQuantiser(16, 4, normalise=True),
    "moving averages": lambda: VectorQuantiser(16, 4, update="ema", restart_after=3, init="kmeans"),
    "behind a map": lambda: SimVectorQuantiser(16, 4),
}
LEFT_OUT = {
    "nearest": set(),
    "nearest, length 1": set(),
    "moving averages": {"cluster_sizes", "cluster_sums", "unused_updates", "is_initialised"},
    "behind a map": {"map.weight"},
}
IMAGES = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(5)) * 2 - 1


def reconstruct(autoencoder: VQAutoencoder, images: Tensor) -> Tensor:
    with torch.no_grad():
        return autoencoder(images)[0]


@pytest.mark.parametrize("name", QUANTISERS)
def test_folder_holds_what_diffusers_names(name: str, tmp_path: Path) -> None:
    left_out = export_diffusers(tmp_path / "out", model(QUANTISERS[name]()), image_size=64)
    assert set(left_out) == {f"quantiser.{part}" for part in LEFT_OUT[name]}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {
        "_class_name": "VQModel",
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 2,
        "latent_channels": 6,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 16,
        "norm_num_groups": 4,
        "sample_size": 64,
    }
    assert expected.items() <= config.items()
    stored = load_file(tmp_path / "out" / WEIGHTS)
    assert stored["encoder.down_blocks.1.attentions.0.to_q.weight"].shape == (16, 16)
    assert stored["decoder.up_blocks.0.upsamplers.0.conv.weight"].shape == (16, 16, 3, 3)
    assert stored["quantize.embedding.weight"].shape == (16, 4)


@pytest.mark.parametrize("middle_attention", [True, False])
@pytest.mark.parametrize("name", QUANTISERS)
def test_reimported_model_reconstructs_alike(name: str, middle_attention: bool, tmp_path: Path) -> None:
    original = model(QUANTISERS[name](), middle_attention=middle_attention)
    export_diffusers(tmp_path / "out", original, image_size=64)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    imported = from_diffusers(load_file(tmp_path / "out" / WEIGHTS), config)
    assert imported.shape.norm_groups == 4 and imported.shape.middle_attention == middle_attention
    again = model(VectorQuantiser(16, 4), middle_attention=middle_attention)
    again.load_state_dict(imported.state)
    torch.testing.assert_close(reconstruct(again, IMAGES), reconstruct(original, IMAGES), atol=1e-5, rtol=0)


def test_a_model_without_codebook_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="rounds to fsq_levels = \\(4, 5\\); .* nearest, ema or sim can be exported"
    ):
        export_diffusers(tmp_path / "out", model(FiniteScalarQuantiser((4, 5))), image_size=64)
    assert not (tmp_path / "out").exists()


def test_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="holds photo.jpg, which is no part of a model"):
        export_diffusers(tmp_path, model(VectorQuantiser(16, 4)), image_size=64)
