"""Latents and images equal those of diffusers' `VQModel` (0.42.1) with the same weights, in float64."""

import pytest
import torch
from torch import Tensor, nn

from rasterformer.codecs.vq.autoencoder import Decoder, Encoder, VQAutoencoder

diffusers = pytest.importorskip("diffusers", reason="needs the extra `bench`")

WIDTHS = (8, 16, 16)


def theirs() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = diffusers.VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=WIDTHS,
        layers_per_block=2,
        latent_channels=6,
        num_vq_embeddings=10,
        vq_embed_dim=5,
        norm_num_groups=4,
    ).double()
    for name, parameter in model.named_parameters():  # zeros and ones, as norms and biases begin, would hide mistakes
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return model.eval()


def ours() -> VQAutoencoder:
    sizes = {"base_width": 8, "multipliers": (1, 2, 2), "res_blocks": 2, "attention_levels": (2,), "norm_groups": 4}
    encoder, decoder = Encoder(3, 6, **sizes), Decoder(3, 6, **sizes)  # type: ignore[arg-type]
    return VQAutoencoder(encoder, decoder, nn.Identity(), z_channels=6, dim=5).double().eval()


RENAMED = (
    ("before.", "quant_conv."),
    ("after.", "post_quant_conv."),
    ("norm_out", "conv_norm_out"),
    ("middle_block1", "mid_block.resnets.0"),
    ("middle_block2", "mid_block.resnets.1"),
    ("middle_attention", "mid_block.attentions.0"),
    ("encoder.levels.", "encoder.down_blocks."),
    ("decoder.levels.", "decoder.up_blocks."),
    (".blocks.", ".resnets."),
    ("shortcut", "conv_shortcut"),
    (".norm.", ".group_norm."),
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".out.", ".to_out.0."),
)


def their_name(name: str) -> str:
    name = name.replace(".resample", ".downsamplers.0.conv" if name.startswith("encoder") else ".upsamplers.0.conv")
    for mine, other in RENAMED:
        name = name.replace(mine, other)
    return name


def copied(source: nn.Module, target: VQAutoencoder) -> VQAutoencoder:
    weights = source.state_dict()
    found = {name: weights.pop(their_name(name)).view_as(tensor) for name, tensor in target.state_dict().items()}
    target.load_state_dict(found)
    assert list(weights) == ["quantize.embedding.weight"]
    return target


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)])
def test_latents_and_images_equal_those_of_diffusers(height: int, width: int) -> None:
    reference = theirs()
    model = copied(reference, ours())
    images = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents: Tensor = reference.encode(images).latents  # type: ignore[operator]
    assert latents.shape == (2, 5, height // 4, width // 4) and latents.std() > 0.1
    torch.testing.assert_close(model.encode(images), latents, rtol=1e-9, atol=1e-9)
    decoded: Tensor = reference.decode(latents, force_not_quantize=True).sample  # type: ignore[operator]
    torch.testing.assert_close(model.decode(latents), decoded, rtol=1e-9, atol=1e-9)
