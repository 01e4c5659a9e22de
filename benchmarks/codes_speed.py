"""Speed of what codes are made and drawn with, against the libraries that users would take instead.

    python -m benchmarks codes_speed [--pairs 5]

Quantisers against vector-quantize-pytorch, the autoencoder against diffusers' `VQModel`, drawing from the prior against minGPT
without a cache and transformers' GPT-2 with one. Opponents have our weights; that they compute the same is checked before
anything is timed. All take turns in one process. Expected time: at most 8 minutes on two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.codes_opponents import LibraryGPT, PlainGPT, autoencoders, library_quantiser
from benchmarks.opponents import versions
from benchmarks.record import RESULTS, circumstances, write_json
from benchmarks.timing import in_turn, ratio, spread
from rasterformer.autoregressive.noise import image_generators
from rasterformer.autoregressive.sample import draw
from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.autoencoder import VQAutoencoder
from rasterformer.codecs.vq.quantise import FiniteScalarQuantiser, Quantiser, VectorQuantiser
from rasterformer.interfaces import Cond, SampleOptions
from rasterformer.systems.vqgan.config import Config as AutoencoderConfig
from rasterformer.systems.vqgan_transformer.config import Config as PriorConfig
from rasterformer.systems.vqgan_transformer.model import CodeTransformer, Vocabulary

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EQUAL_CODES = 0.999  # share; the others lie between two codes, within rounding
LARGEST_DIFFERENCE = 1e-4  # float32, of values about 1
# vector-quantize-pytorch bounds FSQ by 1 + eps where the paper's code has 1 - eps: borders between codes lie elsewhere
FSQ_EQUAL_CODES, FSQ_DIFFERENCE = 0.98, 1e-2
EQUAL = (
    "sizes, batch, dtype, threads and weights; outputs and gradients are compared before anything is timed, and nothing is "
    "timed where they differ"
)
NOT_EQUAL = {
    "quantisers": (
        "with `nearest, gradients` the library's loss counts the one distance once and ours as commitment and codebook loss, "
        "with equal gradients; its FSQ bounds values by 1 + 0.001 where the paper's code has 1 - 0.001"
    ),
    "autoencoder": (
        "in bfloat16 ours quantises in float32 whatever autocast says, diffusers as autocast decides; with "
        "channels of a group from 4 on ours runs channels last by itself, diffusers in the layout it is given"
    ),
    "prior": (
        "ours draws by one noise stream per image, the others from torch's global generator; minGPT is timed at lengths spread "
        "over the image, the others draw whole images; minGPT has PyTorch's fused attention, which the paper's code has not"
    ),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Args:
        vocab_size, dim, normalised_dim, levels: of the quantisers.
        grids: batch and side of z.
        autoencoder: the network; its norm_groups are replaced.
        norm_groups: each is measured.
        images: batch and side of training images, pixels.
        coded_side: of the image that is encoded and decoded alone.
        prior, grid, codes: the transformer, rows and columns of its codes, and how many different ones there are.
        batch_sizes: images drawn at once.
        places: lengths at which minGPT is timed: the middles of so many equal parts of the sequence.
        seconds: a measurement repeats a quick call for so long.
    """

    vocab_size: int
    dim: int
    normalised_dim: int
    levels: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    autoencoder: AutoencoderConfig
    norm_groups: tuple[int, ...]
    images: tuple[tuple[int, int], ...]
    coded_side: int
    prior: PriorConfig
    grid: tuple[int, int]
    codes: int
    batch_sizes: tuple[int, ...]
    places: int
    seconds: float


FULL = Sizes(
    vocab_size=1024,
    dim=64,
    normalised_dim=8,
    levels=(8, 5, 5, 5),
    grids=((16, 16), (4, 64)),
    autoencoder=AutoencoderConfig(
        base_width=64,
        multipliers=(1, 2, 2),
        res_blocks=1,
        attention_levels=(),
        z_channels=64,
        vocab_size=1024,
        dim=8,
        perceptual="none",
        discriminator="none",
    ),
    norm_groups=(32, 4),  # of published models; of our recipes
    images=((16, 64), (4, 128)),
    coded_side=256,
    prior=PriorConfig(width=256, depth=6, num_heads=8, mlp_width=1024),
    grid=(16, 16),
    codes=1024,
    batch_sizes=(1, 16),
    places=8,
    seconds=0.3,
)
QUICK = dataclasses.replace(
    FULL,
    vocab_size=32,
    dim=8,
    normalised_dim=4,
    grids=((2, 8),),
    autoencoder=dataclasses.replace(FULL.autoencoder, base_width=8, z_channels=8, vocab_size=32, dim=4),
    norm_groups=(4, 2),
    images=((2, 16),),
    coded_side=16,
    prior=PriorConfig(width=16, depth=2, num_heads=2, mlp_width=32),
    grid=(4, 4),
    codes=10,
    batch_sizes=(1, 2),
    places=2,
    seconds=0.0,
)


def main(arguments: list[str]) -> None:
    """Measures and writes benchmarks/results/codes_speed.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks codes_speed", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each, in turn")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; needs --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "codes_speed.json", help="file to write")
    options = parser.parse_args(arguments)
    if options.pairs < 1:
        parser.error(f"--pairs {options.pairs} must be at least 1.")
    if options.quick and options.out == parser.get_default("out"):
        parser.error("--quick says nothing about speed and must not replace the results. Give --out FILE.")
    sizes, pairs = QUICK if options.quick else FULL, options.pairs
    record = {
        "quick": options.quick,
        "pairs": pairs,
        "quantisers": [quantisers(sizes, *grid, pairs) for grid in sizes.grids],
        "autoencoder": [autoencoder(sizes, groups, pairs) for groups in sizes.norm_groups],
        "prior": prior(sizes, pairs),
        "sizes": dataclasses.asdict(sizes),
        "equal": EQUAL,
        "not_equal": NOT_EQUAL,
        "opponents": versions("vector-quantize-pytorch", "diffusers", "transformers"),
        **circumstances(),
    }
    write_json(options.out, record)


def quantisers(sizes: Sizes, batch_size: int, side: int, pairs: int) -> dict[str, Any]:
    """A training step of each kind on z [B, D, side, side] in float32: forward, backward, and the codebook's update."""
    torch.manual_seed(0)
    kinds: dict[str, Quantiser] = {
        "nearest, gradients": VectorQuantiser(sizes.vocab_size, sizes.dim, beta=1.0),
        "nearest, moving averages": VectorQuantiser(sizes.vocab_size, sizes.dim, update="ema"),
        "l2-normalised, moving averages": VectorQuantiser(
            sizes.vocab_size, sizes.normalised_dim, update="ema", normalise=True
        ),
        "FSQ": FiniteScalarQuantiser(sizes.levels),
    }
    found: dict[str, Any] = {}
    for name, ours in kinds.items():
        if isinstance(ours, VectorQuantiser):
            spread_out_(ours)
        theirs = library_quantiser(ours)
        z, pull = torch.randn(2, batch_size, ours.dim, side, side)
        steps = QuantiserStep(ours, z, pull), LibraryStep(theirs, z, pull)
        difference = step_difference(*steps)
        is_fsq = isinstance(ours, FiniteScalarQuantiser)
        equal_codes = difference.pop("equal_codes")
        _check_codes(name, equal_codes, FSQ_EQUAL_CODES if is_fsq else EQUAL_CODES)
        _check_difference(name, difference, FSQ_DIFFERENCE if is_fsq else LARGEST_DIFFERENCE)
        found[name] = compared(
            {"ours": steps[0], "opponent": steps[1]},
            pairs,
            sizes.seconds,
            f"{name}, z {list(z.shape)}, vector-quantize-pytorch",
        ) | {"dim": ours.dim, "vocab_size": ours.vocab_size, "equal_codes": equal_codes, "difference": difference}
    return {"batch_size": batch_size, "side": side, "dtype": "float32", "kinds": found}


def spread_out_(quantiser: VectorQuantiser) -> None:
    """Makes the codebook normal noise, as z is: so that all entries are used."""
    entries = torch.randn(quantiser.vocab_size, quantiser.dim)
    entries = nn.functional.normalize(entries) if quantiser.normalise else entries
    with torch.no_grad():
        quantiser.codebook.copy_(entries)
        if quantiser.update == "ema":
            quantiser.cluster_sums.copy_(entries)


class QuantiserStep:
    """A training step of our quantiser, again and again on the same z.

    Args:
        quantiser: is changed.
        z: float32 [B, D, h, w].
        pull: [B, D, h, w], the gradient that arrives from the decoder.
    """

    def __init__(self, quantiser: Quantiser, z: Tensor, pull: Tensor) -> None:
        self.quantiser, self.z, self.pull = quantiser, z.clone().requires_grad_(), pull
        self.optimizer = _optimizer(quantiser)
        self.rng = torch.Generator().manual_seed(0)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Returns values and codes of before the update."""
        self.z.grad = None
        out = self.quantiser(self.z)
        ((out.values * self.pull).sum() + out.loss).backward()
        _update(self.optimizer)
        self.quantiser.update_(self.z.detach(), out.codes, rng=self.rng)
        return out.values.detach(), out.codes

    @property
    def codebook(self) -> Tensor | None:
        """[K, D]; None: there is none."""
        return self.quantiser.codebook.detach() if isinstance(self.quantiser, VectorQuantiser) else None


class LibraryStep:
    """As `QuantiserStep`, of vector-quantize-pytorch, whose moving averages move in `forward`."""

    def __init__(self, layer: Any, z: Tensor, pull: Tensor) -> None:
        self.layer, self.z, self.pull = layer, z.clone().requires_grad_(), pull
        self.optimizer = _optimizer(layer)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Returns values and codes of before the update."""
        self.z.grad = None
        values, codes, *loss = self.layer(self.z)
        ((values * self.pull).sum() + sum(loss)).backward()
        _update(self.optimizer)
        return values.detach(), codes

    @property
    def codebook(self) -> Tensor | None:
        """[K, D]; None: there is none to be learned."""
        return self.layer.codebook.detach() if hasattr(self.layer, "_codebook") else None


def step_difference(ours: QuantiserStep, theirs: LibraryStep) -> dict[str, float]:
    """One step of both: the share of equal codes, and where they are equal the largest differences of everything else."""
    (values, codes), (their_values, their_codes) = ours(), theirs()
    equal = codes == their_codes  # [B, h, w]
    assert ours.z.grad is not None and theirs.z.grad is not None, "a step goes back to z"
    found = {
        "equal_codes": equal.float().mean().item(),
        "values": _largest((values - their_values).movedim(1, -1)[equal]),
        "gradient": _largest((ours.z.grad - theirs.z.grad).movedim(1, -1)[equal]),
    }
    if ours.codebook is not None and theirs.codebook is not None:
        same = torch.ones(len(ours.codebook), dtype=torch.bool)
        same[torch.cat([codes[~equal], their_codes[~equal]])] = False
        found["codebook"] = _largest((ours.codebook - theirs.codebook)[same])
    return found


def autoencoder(sizes: Sizes, norm_groups: int, pairs: int) -> dict[str, Any]:
    """Training steps of the reconstruction; encoding and decoding alone."""
    config = dataclasses.replace(sizes.autoencoder, norm_groups=norm_groups)
    torch.manual_seed(0)
    side = sizes.coded_side
    difference = autoencoder_difference(*autoencoders(config), torch.rand(1, 3, side, side) * 2 - 1)
    what = f"autoencoder, {norm_groups} groups"
    equal_codes = difference.pop("equal_codes")
    _check_codes(what, equal_codes, EQUAL_CODES)
    _check_difference(what, difference, LARGEST_DIFFERENCE)
    steps = []
    for batch_size, size in sizes.images:
        images = torch.rand(batch_size, 3, size, size) * 2 - 1
        for dtype in DTYPES:
            ours, theirs = autoencoders(config)
            calls: dict[str, Callable[[], object]] = {
                "ours": partial(training_step, ours, torch.optim.Adam(ours.parameters()), images, dtype),
                "opponent": partial(training_step, theirs, torch.optim.Adam(theirs.parameters()), images, dtype),
            }
            said = f"{what}, training step at {size}x{size}, {dtype}, diffusers"
            steps.append(
                compared(calls, pairs, sizes.seconds, said)
                | {"batch_size": batch_size, "image_size": size, "dtype": dtype}
            )
    ours, theirs = autoencoders(config)
    alone = [one_way(ours.eval(), theirs.eval(), side, dtype, sizes.seconds, pairs, what) for dtype in DTYPES]
    return {
        "norm_groups": norm_groups,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "equal_codes": equal_codes,
        "difference": difference,
        "steps": steps,
        "alone": [part for parts in alone for part in parts],
    }


def reconstruction_loss(model: Any, images: Tensor, dtype: str) -> Tensor:
    """L1 and the quantiser's loss, of ours or diffusers'."""
    with torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
        if isinstance(model, VQAutoencoder):
            made, quantised = model(images)
            loss = quantised.loss
        else:
            out = model(images)
            made, loss = out.sample, out.commit_loss
    return (made.float() - images).abs().mean() + loss.float()


def training_step(model: Any, optimizer: torch.optim.Optimizer, images: Tensor, dtype: str) -> None:
    """Forward, backward, Adam."""
    optimizer.zero_grad(set_to_none=True)
    reconstruction_loss(model, images, dtype).backward()
    optimizer.step()


def autoencoder_difference(ours: VQAutoencoder, theirs: Any, images: Tensor) -> dict[str, float]:
    """The share of equal codes and the largest differences, in float32; that of the gradient is relative."""
    with torch.no_grad():
        z, latents = ours.encode(images), theirs.encode(images).latents
        codes = ours.quantiser.nearest(z)
        values = ours.quantiser.lookup(codes)
        made, expected = ours.decode(values), theirs.decode(values, force_not_quantize=True).sample
        equal = (codes.flatten() == theirs.quantize(z)[2][2].flatten()).float().mean().item()
    losses = [reconstruction_loss(model, images, "float32") for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    gradient, wanted = (model.encoder.conv_in.weight.grad for model in (ours, theirs))
    assert gradient is not None and wanted is not None, "a step goes back to the first layer"
    return {
        "equal_codes": equal,
        "encoded": _largest(z - latents),
        "decoded": _largest(made - expected),
        "loss": abs(losses[0].item() - losses[1].item()),
        "gradient": _largest(gradient - wanted) / _largest(wanted),
    }


def one_way(
    ours: VQAutoencoder, theirs: Any, side: int, dtype: str, seconds: float, pairs: int, what: str
) -> list[dict[str, Any]]:
    """Image to codes, and codes to image, at batch 1."""
    images = torch.rand(1, 3, side, side) * 2 - 1
    small = side // ours.factor
    codes = torch.randint(ours.quantiser.vocab_size, (1, small, small))
    shape = (1, small, small, ours.quantiser.dim)

    def their_decoding() -> Tensor:
        values = theirs.quantize.get_codebook_entry(codes.flatten(), shape)
        image: Tensor = theirs.decode(values, force_not_quantize=True).sample
        return image

    ways: dict[str, dict[str, Callable[[], object]]] = {
        "encode": {
            "ours": lambda: ours.quantiser.nearest(ours.encode(images)),
            "opponent": lambda: theirs.quantize(theirs.encode(images).latents)[2][2],
        },
        "decode": {"ours": lambda: ours.decode(ours.quantiser.lookup(codes)), "opponent": their_decoding},
    }
    found = []
    with torch.inference_mode(), torch.autocast("cpu", DTYPES[dtype], enabled=dtype != "float32"):
        for way, calls in ways.items():
            said = f"{what}, {way} {side}x{side}, {dtype}, diffusers"
            found.append(
                compared(calls, pairs, seconds, said)
                | {"way": way, "batch_size": 1, "image_size": side, "dtype": dtype}
            )
    return found


def prior(sizes: Sizes, pairs: int) -> dict[str, Any]:
    """Seconds per image of drawing from a prior with fresh weights, in float32."""
    torch.manual_seed(0)
    ours = CodeTransformer(
        sizes.prior, code_order("raster", sizes.grid), sizes.grid, Vocabulary(codes=sizes.codes)
    ).eval()
    with torch.no_grad():
        for weight in ours.parameters():  # positions and biases begin at zero, where a mistake would not show
            weight.add_(0.02 * torch.randn_like(weight))
    plain, library = PlainGPT(ours).eval(), LibraryGPT(ours)
    length = ours.x_shape[0]
    difference = prior_difference(ours, plain, library)
    _check_difference("prior", difference, LARGEST_DIFFERENCE)
    rows = []
    for batch_size in sizes.batch_sizes:
        places = [round((k + 0.5) * length / sizes.places) for k in range(sizes.places)]
        known = [torch.randint(sizes.codes, (batch_size, place)) for place in places]
        calls: dict[str, Callable[[], object]] = {
            "ours": lambda size=batch_size: draw(  # type: ignore[misc]
                ours, Cond(), size, options=SampleOptions(), rng=image_generators(0, size)
            ),
            "minGPT": lambda known=known: [plain.next(tokens) for tokens in known],  # type: ignore[misc]
            "GPT-2": partial(library.generate, batch_size),
        }
        with torch.inference_mode():
            seconds = in_turn(calls, pairs, seconds=sizes.seconds)
        seconds["minGPT"] = [s * length / sizes.places for s in seconds["minGPT"]]
        ratios = {name: ratio(seconds[name], seconds["ours"]) for name in ("minGPT", "GPT-2")}
        for name, found in ratios.items():
            _say(f"drawing {length} codes, batch {batch_size}, {name}", found)
        of_image = {name: spread([s / batch_size for s in values]) for name, values in seconds.items()}
        rows.append({"batch_size": batch_size, "seconds_per_image": of_image, "ratio": ratios})
    return {
        "dtype": "float32",
        "length": length,
        "places": sizes.places,
        "parameters": sum(p.numel() for p in ours.parameters()),
        "difference": difference,
        "rows": rows,
    }


def prior_difference(ours: CodeTransformer, plain: PlainGPT, library: LibraryGPT) -> dict[str, float]:
    """The largest differences of logits, of the same codes."""
    x = torch.randint(ours.vocabulary.codes, (2, ours.x_shape[0]))
    tokens = torch.cat([torch.zeros(2, 1, dtype=torch.int64), x[:, :-1]], 1)  # the start token comes first
    with torch.no_grad():
        logits = ours(x[..., None], Cond())
        return {
            "minGPT": _largest(logits - plain(tokens)),
            "GPT-2": _largest(logits - library.model(input_ids=tokens).logits),
        }


def compared(calls: Mapping[str, Callable[[], object]], pairs: int, seconds: float, what: str) -> dict[str, Any]:
    """Times `ours` and `opponent` in turn."""
    found = in_turn(calls, pairs, seconds=seconds)
    ratios = ratio(found["opponent"], found["ours"])
    _say(what, ratios)
    return {"seconds": {name: spread(values) for name, values in found.items()}, "ratio": ratios}


def _optimizer(module: nn.Module) -> torch.optim.Optimizer | None:
    """Adam, where something is learned by gradients."""
    parameters = list(module.parameters())
    return torch.optim.Adam(parameters) if parameters else None


def _update(optimizer: torch.optim.Optimizer | None) -> None:
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _check_codes(what: str, share: float, least: float) -> None:
    if share < least:
        sys.exit(f"{what}: {share:.4f} of the codes are equal, at least {least} wanted. Nothing is timed.")


def _check_difference(what: str, found: dict[str, float], largest: float) -> None:
    for name, difference in found.items():
        if not difference <= largest:
            sys.exit(f"{what}: {name} differs by {difference:.2g}, at most {largest} wanted. Nothing is timed.")


def _say(what: str, found: dict[str, Any]) -> None:
    print(f"{what}: {found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})", flush=True)
