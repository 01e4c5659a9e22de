"""`rasterformer recipes`: the shipped recipes, listed, shown, or copied to a file that the user edits."""

from pathlib import Path

from cyclopts import App

from rasterformer.errors import ConfigError
from rasterformer.recipe_file import recipe_header, shipped_recipes, shipped_text

app = App(name="recipes", help_format="plaintext", result_action="return_value")


@app.default
def recipes() -> None:
    """List the shipped recipes."""
    names = list(shipped_recipes())
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:{width}}  {_first_sentence(recipe_header(name))}")
    print("\nrasterformer recipes show NAME   |   rasterformer recipes copy NAME [FILE]   |   rasterformer train NAME")


@app.command
def show(name: str) -> None:
    """Print a shipped recipe.

    Args:
        name: its name.
    """
    print(shipped_text(name), end="")


@app.command
def copy(name: str, destination: Path | None = None) -> None:
    """Copy a shipped recipe to a file of yours.

    Args:
        name: its name.
        destination: a file, or a folder to put NAME.yaml into. Default: the current folder.

    Raises:
        ConfigError: no shipped recipe has that name, the file exists already, or it cannot be written.
    """
    text = shipped_text(name)
    target = destination or Path()
    if target.is_dir():
        target = target / f"{name}.yaml"
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target} exists already and is left as it is; give another file name.") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
    print(f"{target} written. Edit it, then: rasterformer train {target} --data DIR --out RUN")


def _first_sentence(header: str) -> str:
    sentence, end, _ = " ".join(header.split()).partition(". ")
    return sentence + end.strip()
