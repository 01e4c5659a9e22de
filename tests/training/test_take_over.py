"""Starting from trained weights (`--init`): rows of codes go by the tokenizer's numbers, whatever the models number them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import rasterformer
from rasterformer.data.imageset import ImageSet
from rasterformer.recipe import DataConfig, Recipe, TrainingConfig
from rasterformer.system import System
from rasterformer.systems.vq_diffusion.config import Config as DiffusionConfig
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan_transformer.config import Config as TransformerConfig
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.codes import CodesLearner
from rasterformer.training.take_over import rows_of_codes, take_over

CODES, MASKS = 6, {"vq_diffusion": 1, "vqgan_transformer": 0}
CONFIGS = {
    "vq_diffusion": DiffusionConfig(width=8, depth=1, num_heads=2, mlp_width=8, num_steps=4),
    "vqgan_transformer": TransformerConfig(width=8, depth=1, num_heads=2, mlp_width=8),
}


def tokenizer_of(seed: int = 0) -> Tokenizer:
    """Untrained; images of 8x8 pixels have 4x4 codes."""
    config = TokenizerConfig(
        base_width=8, multipliers=(1, 1), res_blocks=1, attention_levels=(), middle_attention=False, z_channels=8,
        norm_groups=2, vocab_size=CODES, dim=4, perceptual="none", discriminator="none",
    )  # fmt: skip
    made = Tokenizer.create(Recipe("vqgan", config, DataConfig(image_size=8), TrainingConfig(seed=seed)))
    made.autoencoder.eval().requires_grad_(False)
    return made


def system_of(name: str, used: list[int] | None, *, seed: int, tokenizer: Tokenizer | None = None) -> System:
    recipe = Recipe(name, CONFIGS[name], DataConfig(image_size=8), TrainingConfig(seed=seed))
    numbers = None if used is None else torch.tensor(used)
    return System.create(recipe, tokenizers={"tokenizer": tokenizer or tokenizer_of()}, used_codes=numbers)


def learner_of(system: System) -> CodesLearner:
    images = ImageSet(
        name="toys", split="train", split_origin="all", preprocessing="none", image_size=8, class_names=(), labels=None,
        captions=None, fingerprint="0" * 64, lossless=True, skipped=(), num_images=2,
        pixels=torch.zeros(2, 3, 8, 8, dtype=torch.uint8), names=("0.png", "1.png"),
    )  # fmt: skip
    return CodesLearner(system, images, images, say=lambda text: None)


def weights_of(system: System) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in system.model.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("theirs", "ours", "known"),
    [([0, 2, 3, 5], [1, 2, 5], 2), (None, [1, 4], 2), ([1, 4], None, 2), ([0, 1, 2], [3, 4, 5], 0)],
    ids=str,
)
def test_codes_that_both_models_know_keep_their_weights(
    name: str, theirs: list[int] | None, ours: list[int] | None, known: int, tmp_path: Path
) -> None:
    """Row by row, by the tokenizer's numbers; no map means all codes."""
    system_of(name, theirs, seed=1).save(tmp_path / "model")
    source, system = weights_of(rasterformer.load(tmp_path / "model")), system_of(name, ours, seed=2)
    fresh, said = weights_of(system), list[str]()
    take_over(learner_of(system), tmp_path / "model", said.append)
    taken = weights_of(system)
    their_numbers, our_numbers = theirs or list(range(CODES)), ours or list(range(CODES))
    for weight in (part for part in ("token_embedding.weight", "head.weight", "head.bias") if part in fresh):
        for row, number in enumerate(our_numbers):
            is_known = number in their_numbers
            expected = source[weight][their_numbers.index(number)] if is_known else fresh[weight][row]
            assert torch.equal(taken[weight][row], expected), (weight, number)
    assert MASKS[name] == len(fresh["token_embedding.weight"]) - len(our_numbers)
    if MASKS[name]:
        assert torch.equal(taken["token_embedding.weight"][-1], source["token_embedding.weight"][-1])
    assert torch.equal(taken["final_norm.weight"], source["final_norm.weight"])
    assert any(f"it knows {known} of these {len(our_numbers)} codes" in line for line in said)
    assert any(f"the other {len(our_numbers) - known} start fresh" in line for line in said)


def test_models_that_number_the_same_codes_take_over_all(tmp_path: Path) -> None:
    system_of("vq_diffusion", [1, 4], seed=1).save(tmp_path / "model")
    system, said = system_of("vq_diffusion", [1, 4], seed=2), list[str]()
    take_over(learner_of(system), tmp_path / "model", said.append)
    source, taken = weights_of(rasterformer.load(tmp_path / "model")), weights_of(system)
    assert all(torch.equal(taken[name], weight) for name, weight in source.items())
    assert said == [f"--init {tmp_path / 'model'}: {len(source)} of {len(source)} weights taken over"]


@pytest.mark.parametrize("used", [None, [1, 4]])
def test_of_another_tokenizer_no_embeddings_of_codes_are_taken_over(used: list[int] | None, tmp_path: Path) -> None:
    system_of("vq_diffusion", used, seed=1, tokenizer=tokenizer_of(7)).save(tmp_path / "model")
    system, said = system_of("vq_diffusion", used, seed=2), list[str]()
    fresh = weights_of(system)
    take_over(learner_of(system), tmp_path / "model", said.append)
    source, taken = weights_of(rasterformer.load(tmp_path / "model")), weights_of(system)
    of_codes = ["token_embedding.weight", "head.weight", "head.bias"]
    assert all(torch.equal(taken[name], (fresh if name in of_codes else source)[name]) for name in taken)
    assert not torch.equal(source["head.weight"], fresh["head.weight"])
    assert "its tokenizer is another one" in said[0] and "not taken over" in said[0]
    assert any("starting fresh: token_embedding.weight, head.weight, head.bias" in line for line in said)


def test_rows_after_the_codes_are_the_sources() -> None:
    own, source = torch.zeros(4, 1), torch.tensor([[10.0], [20.0], [30.0], [99.0]])
    taken = rows_of_codes(own, torch.tensor([2, 5, 8]), source, torch.tensor([5, 7, 8]))
    assert taken.flatten().tolist() == [0.0, 10.0, 30.0, 99.0] and not own.any()
