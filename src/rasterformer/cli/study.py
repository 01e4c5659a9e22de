"""`rasterformer study`: ask people which image is real, and count how often they are wrong."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from rasterformer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rasterformer.study.report import Fooled

app = App(
    name="study",
    help="Ask people which of two images is real: % fooled, as in the paper's Table 5.",
    help_format="plaintext",
    result_action="return_value",
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_SKIPPED_ROWS = 6


@app.command
def create(
    real: Path,
    generated: list[Path],
    /,
    *,
    out: Path = Path("study.db"),
    pairs: int = 50,
    checks: int = 5,
    seed: int = 0,
    seconds: float = 1.5,
    name: str | None = None,
    temperature: float | None = None,
) -> None:
    """Draw pairs of a real and a generated image, and put them into a study's file.

    Larger real images are reduced to the generated images' size by the mean over areas; then both are enlarged to
    128x128 bilinearly. The file holds all pictures: the folders are not needed afterwards.

    Args:
        real: folder of real images, of which the model has seen none.
        generated: folders of generated images. Model and temperature are read from our PNG files; for other files the
            folder's name stands for the model. Each model and temperature is reported by itself.
        out: the file to make; an existing one is left as it is.
        pairs: of each model and temperature. Every worker sees all pairs of the study.
        checks: hidden pairs of a real image and noise, to find workers who click at random.
        seed: another seed, other pairs.
        seconds: how long a pair is shown; 1 to 2 in the paper.
        name: of the model, for files that do not say it. Default: their folder's name.
        temperature: for files that do not say it. Default: not stated.
    """
    from rasterformer.cli.scan import printable
    from rasterformer.study.create import create_study, described

    done = create_study(
        real,
        generated,
        out,
        pairs=pairs,
        checks=checks,
        seed=seed,
        seconds=seconds,
        name=name,
        temperature=temperature,
    )
    for condition, side in done.sides.items():
        print(f"{printable(described(condition))}: {pairs} pairs of {side}x{side} pixels, shown at 128x128")
    if done.reduced:
        print(f"{done.reduced} real images were larger and have been reduced to that size by the mean over areas.")
    for file, reason in done.skipped[:_SKIPPED_ROWS]:
        print(f"skipped {printable(file)}: {printable(reason)}")
    if len(done.skipped) > _SKIPPED_ROWS:
        print(f"... and {len(done.skipped) - _SKIPPED_ROWS} more")
    total = pairs * len(done.sides) + checks
    print(
        f"{printable(str(out))}: {total} pairs a worker, {checks} of them checks. Next: rasterformer study serve {out}"
    )


@app.command
def serve(study: Path, /, *, host: str = "127.0.0.1", port: int = 8500, workers: int | None = None) -> None:
    """Ask workers in their browsers, until Ctrl-C. Votes are kept when the server stops, however it stops.

    Args:
        study: file that `study create` made.
        host: address to listen at. Default: this machine only.
        port: 1 to 65535.
        workers: print so many personal links, the same ones at every start, and let in nobody else. Default: whoever
            opens the printed link becomes a new worker.

    Raises:
        ConfigError: port or workers is out of range, or the address cannot be listened at.
    """
    from rasterformer.study.server import make_app, run
    from rasterformer.study.store import Store

    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port} must be 1 to 65535.")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers} must be at least 1.")
    application = make_app(study, joining=workers is None)
    if host not in LOOPBACK:
        warnings.warn(
            f"--host {host}: everybody who reaches this machine can take part, over a connection without encryption.",
            stacklevel=1,
        )
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if workers is None:
        print(f"Each visit of this link makes a new worker: {address}/")
    else:
        with Store(study) as store:
            while len(store.tokens()) < workers:
                store.join()
            for number, token in enumerate(store.tokens(), start=1):
                print(f"worker {number}: {address}/w/{token}")
    print("Ctrl-C stops; votes and links are kept.")
    sys.stdout.flush()
    run(application, host, port)


@app.command
def report(
    study: Path,
    /,
    *,
    csv: Path | None = None,
    html: Path | None = None,
    checks_right: float = 0.8,
) -> None:
    """Count how often workers took the generated image for the real one.

    Args:
        study: file that `study create` made; it may be served at the same time.
        csv: write all votes into this file; workers are numbers.
        html: write a page with figures and pictures.
        checks_right: leave out workers who answered at least 3 check pairs and a smaller share of them right.
    """
    from rasterformer.study.report import count_votes, rule, write_csv, write_html
    from rasterformer.study.store import Store

    with Store(study) as store:
        found = count_votes(store.votes(), checks_right=checks_right)
        if not found.votes:
            print("Nobody has voted yet.")
        else:
            _print(f"without workers who failed the check pairs ({len(found.excluded)})", found.attentive)
            _print("all workers", found.everybody)
            print(f"{found.workers} workers, {len(found.votes)} votes, check pairs included. {rule(found)}")
            print(
                "% fooled: how often, of a pair, the generated image was taken for the real one; guessing gives 50. "
                "± behind it: standard error over workers. The binomial one and Wilson's interval take votes as independent."
            )
        if csv is not None:
            write_csv(csv, found)
            print(f"{csv} written.")
        if html is not None:
            write_html(html, found, store.pairs(), seconds=store.seconds)
            print(f"{html} written.")


def _print(title: str, conditions: Iterable[Fooled]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rasterformer.cli.scan import printable
    from rasterformer.study.report import HEADER, table_rows

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in HEADER:
        table.add_column(name, no_wrap=name != "model", overflow="fold")
    for row in table_rows(conditions):
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
