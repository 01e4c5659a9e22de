"""The `rasterformer` command: which commands there are, and what becomes of errors. No torch until a command needs it.

Exit codes: 0 done; 1 our fault (with its traceback); 2 the user's input (one message); 130 stopped by Ctrl-C.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from rasterformer import __version__
from rasterformer.errors import RasterformerError

# name: (function that is imported when the command runs, what --help says)
COMMANDS = {
    "train": ("rasterformer.cli.train:train", "Train a model by a recipe on your images."),
    "join": ("rasterformer.cli.join:join", "Join models that were trained one by one to a cascade."),
    "evaluate": (
        "rasterformer.cli.evaluate:evaluate",
        "Measure a model on held-out images: bits/dim with an interval.",
    ),
    "reconstruct": (
        "rasterformer.cli.reconstruct:reconstruct",
        "Turn pictures into codes and back, or measure what a tokenizer loses.",
    ),
    "tokenize": ("rasterformer.cli.tokenize:tokenize", "Turn a set of images into a codes file."),
    "detokenize": ("rasterformer.cli.detokenize:detokenize", "Make images of a codes file."),
    "surprise": ("rasterformer.cli.surprise:surprise", "Find damaged, foreign or mislabelled images in a folder."),
    "sample": ("rasterformer.cli.sample:sample", "Draw new images."),
    "complete": ("rasterformer.cli.complete:complete", "Complete images of which the first part is known."),
    "upscale": ("rasterformer.cli.upscale:upscale", "Draw larger pictures from small ones."),
    "restore": ("rasterformer.cli.restore:restore", "Draw missing parts of pictures."),
    "vary": ("rasterformer.cli.vary:vary", "Draw pictures that resemble given ones."),
    "colourise": ("rasterformer.cli.colourise:colourise", "Draw colours for grey pictures."),
    "denoise": ("rasterformer.cli.denoise:denoise", "Draw clean pictures from noisy ones."),
    "transform": ("rasterformer.cli.transform:transform", "Draw what a model's task makes of pictures."),
    "import-weights": (
        "rasterformer.cli.import_weights:import_weights",
        "Make a tokenizer or prior of published weights.",
    ),
    "export": ("rasterformer.cli.export:export", "Write a tokenizer for another program."),
    "study": ("rasterformer.cli.study:app", "Ask people which image is real, and count how often they are wrong."),
    "scan": ("rasterformer.cli.scan:scan", "Read every image of a folder once and report what training would see."),
    "recipes": ("rasterformer.cli.recipes:app", "List the shipped recipes, show one, or copy one to edit."),
    "inspect": ("rasterformer.cli.inspect:inspect", "Say what a model, a run, a checkpoint or a picture is."),
    "doctor": ("rasterformer.cli.doctor:doctor", "Check this machine and this installation."),
    "demo": ("rasterformer.cli.demo:demo", "Train for two minutes on embedded images and write a page of results."),
}

app = App(
    name="rasterformer",
    help="Transformer-based image generation on your own images.\n\n"
    "`rasterformer COMMAND --help` explains a command. `--debug` shows the traceback of an error.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for position, (name, (function, summary)) in enumerate(COMMANDS.items()):
    app.command(function, name=name, help=summary, sort_key=position)


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        tokens: the words after `rasterformer`. None: those of this process.
    """
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            result = app([word for word in words if word != "--debug"], exit_on_error=False, print_error=False)
        except (RasterformerError, CycloptsError) as error:
            if debug:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"stopped: {stop}" if str(stop) else "stopped", file=sys.stderr)
            return 130
        except BrokenPipeError:  # what was printed went to a program that has ended, such as head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it says nothing
            return 141
    return result if isinstance(result, int) else 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
