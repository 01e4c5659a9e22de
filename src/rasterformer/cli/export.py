"""`rasterformer export`: a tokenizer for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(model: Path, *, layout: Literal["diffusers"], out: Path) -> None:
    """Write a tokenizer for another program.

    Args:
        model: run, model folder or checkpoint of a tokenizer.
        layout: `diffusers`: a folder for VQModel.from_pretrained.
        out: the folder to write.

    Raises:
        CheckpointError: the model cannot be loaded, rounds instead of looking codes up (fsq), or `out` cannot be written.
        ConfigError: the model is no tokenizer.
    """
    from rasterformer.tokenizer import load_tokenizer
    from rasterformer.weights.export import export_diffusers

    tokenizer = load_tokenizer(model, device="cpu")
    left_out = export_diffusers(out, tokenizer.autoencoder, image_size=tokenizer.image_size)
    if left_out:
        print(f"left out, {layout} learns no codebook from them: {', '.join(left_out)}")
    print(
        f"{out} written for {layout}: {tokenizer.vocab_size:,} codes, one for {tokenizer.factor}x{tokenizer.factor} pixels."
    )
