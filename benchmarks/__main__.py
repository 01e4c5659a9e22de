"""`python -m benchmarks NAME ...`, from the root of the checkout; NAME is one of the scripts below."""

import importlib
import sys

SCRIPTS = {
    "cifar10_20_minutes": "equal training time on CIFAR-10: the house recipe, the paper's form, a PixelCNN++",
    "training_step": "speed of a training step: local attention against dense and two libraries; share of the peak",
    "sampling": "speed and memory of sampling: against ImageGPT and naive re-evaluation, by image size, in parallel",
    "codes_speed": "speed of quantisers, VQGAN autoencoder and drawing codes: against three libraries",
    "imagen_speed": "speed of pixel diffusion: training step, drawing, samplers, guidance, checkpointing, against diffusers",
    "super_resolution": "8x8 -> 32x32 on cartoon faces: 1D and 2D attention, samples beside simple means",
    "source_gain": "CIFAR-10 with and without an 8x8 source, the same size and training time",
    "restoration": "in-painting, colourisation and denoising after short trainings",
    "tiles": "seams of pictures that are drawn in tiles",
    "surprise": "foreign and damaged images among clean ones: how many of them a ranking by likelihood finds",
    "vqgan": "tokenizers, priors over their codes, conditions and a large picture, from finished runs",
    "vq_diffusion": "VQ-Diffusion beside an autoregressive model over the same codes, from finished runs",
    "imagen": "Imagen beside all other systems: text, likelihood, in-painting, samplers, one table; from finished runs",
    "render": "docs/results.md from the JSON of the others",
}


def main() -> None:
    """Runs one script with the rest of the arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in SCRIPTS:
        lines = "\n".join(f"  {name:20} {text}" for name, text in SCRIPTS.items())
        sys.exit(f"usage: python -m benchmarks NAME [--help]\n{lines}")
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    main()
