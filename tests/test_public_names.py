"""The public names of the package. A change of this list is a decision about the interface."""

import pytest

import rasterformer

PUBLIC = [
    "Recipe", "RasterformerError", "System", "Tokenizer", "__version__", "load", "load_recipe", "load_tokenizer",
]  # fmt: skip


def test_public_names_are_exactly_these() -> None:
    assert sorted(rasterformer.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(rasterformer))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_can_be_loaded_and_is_explained(name: str) -> None:
    value = getattr(rasterformer, name)
    assert name == "__version__" or (value.__name__ == name and value.__doc__)


def test_any_other_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'rasterformer' has no attribute 'lode'"):
        _ = rasterformer.lode
