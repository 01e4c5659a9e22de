"""The words of `train` that name a recipe's field: `--model.depth 8`, `--training.steps=200`."""

from collections.abc import Sequence

from rasterformer.errors import ConfigError


def parse_overrides(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Returns pairs such as `("model.depth", "8")` for `load_recipe`, in the order given.

    Args:
        tokens: the words that are no option of the command: `--section.field VALUE` or `--section.field=VALUE`. A
            value may be negative, but one that begins with two hyphens needs the `=`.

    Raises:
        ConfigError: a word is not of that form, or its value is missing.
    """
    pairs = []
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        if not token.startswith("--") or "." not in name:
            raise ConfigError(
                f"{token!r} is no option of this command. A field of the recipe is set by --section.field VALUE, "
                "as in --model.depth 8."
            )
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name} has no value; write --{name} VALUE.")
            value = remaining.pop(0)
        pairs.append((name, value))
    return pairs
