"""What the commands from pictures to pictures (`upscale`, `restore`, `vary`, ...) share: pictures in, results and a sheet out."""

from __future__ import annotations

import glob
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from rasterformer.cli.denoising import Denoising, GuidanceScale, record
from rasterformer.cli.missing import Missing
from rasterformer.errors import ConfigError, DataError, ShapeError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from rasterformer.data.decode import Reading


@Parameter(name="*")
@dataclass(frozen=True)
class Drawing:
    """How results are drawn and where they go.

    Args:
        n: results of each picture.
        temperature: below 1 draws more probable images, 1 draws from the model itself.
        top_k: draw each value from the k most probable ones only.
        top_p: draw each value from the smallest set with this probability only.
        label: class to draw, by name or index, for a model with classes. Default: not said, where the model has learned that
            (trained with model.drop_condition_prob and without a task), else one at random for each picture.
        seed: another seed, other results.
        out: folder for the results and sheet.png.
        beside: put each result beside its picture instead, under a name that says what it is.
        original: the pictures are what the model should make: reduce them to its size and make sources from them as in
            training; the sheet then shows source | results | original.
        tile: draw pictures that are larger than the model's: in overlapping tiles, by a sliding window (models over codes), or at
            once (diffusion models of pixels).
        overlap: of neighbouring tiles, pixels of the source. Default: half of a tile.
        batch_size: tiles drawn at a time. Default: as many as half of the free memory holds, at most 64.
        precision: bfloat16 is faster with many tiles and draws from a rounded model.
        scale: magnification in the sheet.
        guidance_scale: above 1 the condition counts more; for models over codes and diffusion models trained with
            model.drop_condition_prob.
        window_stride: models over codes draw larger pictures by a sliding window, which moves on by so many codes; more is
            faster. Default: 1, the paper's rule; of a diffusion model half a window.
        text: what to draw, for models trained with captions. Default: not said, where the model has learned that; '' is an empty
            caption.
        text_folder: where the text encoder of the model's training lies now (text.encoder: folder). Default: where it lay then.
        crop: cut pictures, centred, to sides that are multiples of a few pixels, which models over codes need.
        dry_run: of a diffusion model of pixels: say how much memory and time it takes, by timing a pass, and draw nothing.
    """

    n: Annotated[int, Parameter(name=["-n", "--n"])] = 1
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    label: str | None = None
    seed: int = 0
    out: Path = Path("results")
    beside: Annotated[bool, Parameter(negative="")] = False
    original: Annotated[bool, Parameter(negative="")] = False
    tile: bool = True
    overlap: int | None = None
    batch_size: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    scale: int = 4
    guidance_scale: GuidanceScale = 1.0
    window_stride: int | None = None
    text: str | None = None
    text_folder: Path | None = None
    crop: Annotated[bool, Parameter(negative="")] = False
    dry_run: Annotated[bool, Parameter(negative="")] = False


def draw_from_images(
    command: str,
    task: str | None,
    model: Path,
    images: Sequence[str],
    drawing: Drawing,
    *,
    denoising: Denoising = Denoising(),  # noqa: B008  frozen
    missing: Missing | None = None,
    strength: float | None = None,
) -> int:
    """Reads the pictures, draws, and writes as it goes; returns the exit code.

    Args:
        command: its name, for messages and file names.
        task: that the model must have been trained for; `upscale` works with a cascade, too. None: any.
        model: run, model folder or checkpoint.
        images: files, folders and patterns.
        drawing: the options.
        denoising: options of diffusion models.
        missing: what is to be drawn of the pictures. None: the task or --original says it.
        strength: of `vary`. None: for the other commands.

    Raises:
        ConfigError, DataError, ShapeError: what was typed cannot be done; the message says why.
    """
    import torch
    import torch.nn.functional as F

    from rasterformer import load
    from rasterformer.cli.progress import step_progress
    from rasterformer.conditioning.resize import reduce_area
    from rasterformer.conditioning.sources import masked_source, source_of_picture
    from rasterformer.data.palette import label_colours
    from rasterformer.data.png import image_grid, write_png
    from rasterformer.diffusion.image_denoiser import ImageDenoiser
    from rasterformer.drawing.canvas import visible_source
    from rasterformer.drawing.code_images import source_multiple
    from rasterformer.drawing.options import DrawingOptions
    from rasterformer.drawing.stages import factors_of
    from rasterformer.drawing.timing import time_from_pictures
    from rasterformer.interfaces import Batch, Cond
    from rasterformer.recipe_file import recipe_hash
    from rasterformer.tasks import Paired, task_name

    if drawing.n < 1 or drawing.scale < 1:
        raise ConfigError(f"-n {drawing.n} and --scale {drawing.scale} must be at least 1.")
    if strength is not None:
        _refuse_of_vary(drawing)
    system = load(model, text_folder=drawing.text_folder)
    if strength is not None and not system.is_diffusion:
        raise ConfigError(f"vary undoes noise, which only a diffusion model does, and {model} is none.")
    trained = None if system.task is None else task_name(system.task)
    upscalers_alone = command == "upscale" and bool(system.upscalers) and system.recipe.task is None
    if not upscalers_alone and (trained is None or (task is not None and trained != task)):
        wanted = "a model with a task" if task is None else f"a model of the task {task}"
        wanted = f"a cascade or {wanted}" if command == "upscale" else wanted
        use = "restore" if trained == "inpaint" else "transform"
        hint = f" `rasterformer {use} {shlex.quote(str(model))}` does what it was trained for." if trained else ""
        own = trained
        if system.recipe.task is None and trained is not None:
            others = ", vary and upscale" if system.upscalers else " and vary"
            own, hint = None, f" `rasterformer restore {shlex.quote(str(model))}`{others} work without a task."
        raise ConfigError(f"{command} needs {wanted}, but {model} was trained for {own or 'images alone'}.{hint}")
    if command == "transform" and trained == "inpaint" and not drawing.original:
        raise ConfigError(
            f"{model} fills in what a mask says is missing: rasterformer restore {shlex.quote(str(model))} ..."
        )
    if drawing.crop and system.tokenizer is None:
        raise ConfigError(
            "--crop is for models over codes, and this one draws pixels, of pictures with any sides. Leave it out."
        )
    if drawing.dry_run and not isinstance(system.model, ImageDenoiser):
        raise ConfigError(
            f"--dry-run of {command} is for diffusion models of pixels, and {model} is none. Leave it out; sample and complete "
            "have one for all models."
        )
    files = find_pictures(images)
    assert system.task is not None, "refused above"
    labels = isinstance(system.task, Paired) and system.task.source_reduction == "nearest"
    pictures = [_read(path, "labels" if labels else "colours") for path in files]
    extend = None if missing is None else missing.extend
    top, right, bottom, left = extend or (0, 0, 0, 0)
    assert system.source_shape is not None, "a task has sources"
    side = system.recipe.data.image_size if upscalers_alone else system.source_shape.size
    for path, picture in zip(files, pictures, strict=True):
        height, width = picture.shape[1] + top + bottom, picture.shape[2] + left + right
        if not drawing.original and min(height, width) < side:
            whole = "source is" if extend is None else "with --extend it is"
            raise ShapeError(f"{path}: {whole} {width}x{height} pixels; this model needs at least {side}x{side}.")
    if isinstance(system.model, ImageDenoiser) and not drawing.original and strength is None:
        larger = [path for path, picture in zip(files, pictures, strict=True) if max(picture.shape[1:]) > side]
        if larger:
            print(
                f"note: {larger[0]} is larger than the {side}x{side} pixels that this model was trained on. It is drawn at once, "
                "and things in it may come out as what fills so small a picture. For such pictures train on parts of large ones "
                "(model.crop), or cut them.",
                file=sys.stderr,
            )
    known: list[Tensor] | None = None
    if missing is not None and not drawing.original:
        known = [missing.known(picture.shape[1], picture.shape[2]) for picture in pictures]
    if strength is not None:
        pictures = list(system.to_tensor(to_pil_list(pictures)))
    elif system.tokenizer is not None and not drawing.original:
        more, multiple = (top + bottom, left + right), source_multiple(system)
        parts = [
            _part_that_fits(path, picture, multiple, more=more, crop=drawing.crop)
            for path, picture in zip(files, pictures, strict=True)
        ]
        pictures = [picture[:, *part] for picture, part in zip(pictures, parts, strict=True)]
        if known is not None:
            known = [mask[part] for mask, part in zip(known, parts, strict=True)]
    if extend is not None:
        assert known is not None, "--extend and --original are not given together"
        pictures, known = ([F.pad(part, (left, right, top, bottom)) for part in parts] for parts in (pictures, known))
    originals: Tensor | None = None
    if drawing.original:
        if trained == "paired":
            raise ConfigError(
                "--original needs a task that makes sources from images; a paired one has them in a folder."
            )
        originals = system.to_tensor(to_pil_list(pictures))
        batch = Batch(originals)
        if upscalers_alone:
            batch = Batch(originals, Cond(source=reduce_area(originals, factors_of(system)[0])))
        if missing is not None:
            masks = [missing.known(system.image_size, system.image_size)] * len(originals)
            batch = Batch(originals, masked_source(originals, torch.stack(masks)))
        if batch.cond.source is None and system.recipe.task is None:
            raise ConfigError(
                "this model fills in any mask, and draws none for --original. Use restore with --mask or --rectangle."
            )
        cond = system.with_source(batch, first=0, purpose="held-out source", seed=drawing.seed).cond
        assert cond.source is not None, "the task makes sources"
        if cond.source.shape[1] == 3:  # otherwise it is made from the originals when drawing begins
            pictures = list(cond.source)
        else:
            pictures = list(originals)
        known = None if cond.known is None else list(cond.known)
    how: dict[str, Any] = {
        "temperature": drawing.temperature,
        "top_k": drawing.top_k,
        "top_p": drawing.top_p,
        "seed": drawing.seed,
        "batch_size": drawing.batch_size,
        "precision": drawing.precision,
        "guidance_scale": drawing.guidance_scale,
        "window_stride": drawing.window_stride,
        **asdict(denoising),
    }
    if drawing.dry_run:
        for plan, seconds in time_from_pictures(
            system,
            pictures,
            drawing.n,
            DrawingOptions(**how),
            known=known,
            strength=strength,
            upscalers_alone=upscalers_alone,
            label=drawing.label,
            text=drawing.text,
            tile=drawing.tile,
            overlap=drawing.overlap,
        ):
            print(f"{plan}\ntime: {seconds}")
        return 0
    is_filling = known is not None and system.is_diffusion
    about = {
        "kind": command,
        "model": str(model),
        "recipe": recipe_hash(system.recipe),
        **record(
            system,
            DrawingOptions(**how),
            label=drawing.label,
            text=drawing.text,
            is_filling=is_filling,
            upscalers_alone=upscalers_alone,
        ),
    }
    if strength is None:
        matters = (
            ("original", "tile") if isinstance(system.model, ImageDenoiser) else ("original", "tile", "overlap", "crop")
        )
        about |= {name: getattr(drawing, name) for name in matters}
    else:
        about["strength"] = strength
    if missing is not None:
        about |= missing.record()
    places = result_places(files, command, drawing)
    done: dict[int, Tensor] = {}

    def keep(which: int, results: Tensor) -> None:
        for k, result in enumerate(results):
            write_png(
                places[which][k], result, metadata={**about, "image": files[which].name, "number": which, "result": k}
            )
        done[which] = results

    stopped = False
    try:
        with step_progress(f"{command}: {len(files)} pictures, {drawing.n} times each") as on_step:
            how |= {
                "n": drawing.n,
                "label": drawing.label,
                "text": drawing.text,
                "as_tensor": True,
                "on_step": on_step,
            }
            if strength is not None:
                system.vary(torch.stack(pictures), strength=strength, on_images=in_rows_of(drawing.n, keep), **how)
            elif upscalers_alone:
                system.upscale(to_pil_list(pictures), tile=drawing.tile, overlap=drawing.overlap, on_images=keep, **how)
            else:
                system.transform(
                    to_pil_list(pictures),
                    known=known,
                    tile=drawing.tile,
                    overlap=drawing.overlap,
                    on_images=keep,
                    **how,
                )
    except KeyboardInterrupt:
        stopped = True
    where = "beside their pictures" if drawing.beside else f"in {drawing.out}"
    print(f"{'stopped: ' if stopped else ''}{len(done) * drawing.n} of {len(files) * drawing.n} results are {where}")
    if not drawing.beside:
        by_size: dict[tuple[int, int], list[Tensor]] = {}
        for which, results in done.items():
            size = (results.shape[2], results.shape[3])
            mask = None if known is None else known[which][None]
            source = source_of_picture(system.task, pictures[which][None])
            source = label_colours(source) if labels else source
            row = [*visible_source(Cond(source=source, known=mask), size), *results]
            row += [] if originals is None else [originals[which]]
            by_size.setdefault(size, []).append(torch.stack(row))
        for (height, width), rows in by_size.items():
            path = drawing.out / ("sheet.png" if len(by_size) == 1 else f"sheet-{width}x{height}.png")
            sheet = image_grid(torch.cat(rows), columns=len(rows[0]), scale=drawing.scale)
            write_png(path, sheet, metadata=about)
            print(f"{path} shows source | results{'' if originals is None else ' | original'}")
    return 130 if stopped else 0


def in_rows_of(n: int, keep: Callable[[int, Tensor], None]) -> Callable[[int, Tensor], None]:
    """Takes results as they come, in the order of the pictures, and hands on all n of a picture when they are there."""
    import torch

    waiting: list[Tensor] = []

    def take(start: int, results: Tensor) -> None:
        waiting.extend(results)
        first = (start + len(results) - len(waiting)) // n
        while len(waiting) >= n:
            keep(first, torch.stack(waiting[:n]))
            del waiting[:n]
            first += 1

    return take


def _refuse_of_vary(drawing: Drawing) -> None:
    """What it shares with other commands and does not look at: pictures are fitted to the model's size."""
    plain = Drawing()
    for name in ("original", "tile", "overlap", "window_stride", "crop"):
        if getattr(drawing, name) != getattr(plain, name):
            flag = f"--{'no-' if name == 'tile' else ''}{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is not for vary, which fits pictures to the model's size. Leave it out.")


def _part_that_fits(
    path: Path, picture: Tensor, multiple: int, *, more: tuple[int, int], crop: bool
) -> tuple[slice, slice]:
    """Rows and columns of a picture uint8 [3, h, w], all or its centre: with `more` pixels beside them they must be multiples."""
    height, width = picture.shape[1:]
    rows, cols = height - (height + more[0]) % multiple, width - (width + more[1]) % multiple
    if (rows, cols) != (height, width) and not crop:
        extended = f", {width + more[1]}x{height + more[0]} with --extend" if any(more) else ""
        raise ShapeError(
            f"{path} is {width}x{height} pixels{extended}; this model takes multiples of {multiple}. With --crop it is cut to "
            f"{cols}x{rows}."
        )
    top, left = (height - rows) // 2, (width - cols) // 2
    return slice(top, top + rows), slice(left, left + cols)


def find_pictures(images: Sequence[str]) -> list[Path]:
    """Files, folders (their image files, sorted) and patterns as one list of files.

    Raises:
        ConfigError: nothing was named.
        DataError: a name leads to no image file.
    """
    from rasterformer.data.decode import SUFFIXES

    if not images:
        raise ConfigError("no picture was given. Give at least one file, folder or pattern.")
    found: list[Path] = []
    for name in images:
        place = Path(name).expanduser()
        if place.is_dir():
            paths = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
        elif place.exists():
            paths = [place]
        else:
            paths = [path for path in map(Path, sorted(glob.glob(str(place), recursive=True))) if path.is_file()]
        if not paths:
            raise DataError(
                f"{name}: {'no image in this folder' if place.is_dir() else 'no such file, folder or match'}."
            )
        found += paths
    return found


def result_places(files: Sequence[Path], command: str, drawing: Drawing) -> list[list[Path]]:
    """Where the n results of each picture go; pictures of the same name get numbers.

    Raises:
        ConfigError: a result or the sheet would overwrite one of the pictures.
    """
    folders = [path.parent if drawing.beside else drawing.out for path in files]
    stems = [path.stem for path in files]
    if len({(folder.resolve(), stem) for folder, stem in zip(folders, stems, strict=True)}) < len(files):
        stems = [f"{number:03d}-{stem}" for number, stem in enumerate(stems)]
    infix = f"-{command}" if drawing.beside else ""
    places = [
        [folder / f"{stem}{infix}-{k}.png" for k in range(drawing.n)]
        for folder, stem in zip(folders, stems, strict=True)
    ]
    pictures = {path.resolve() for path in files}
    sheets = [] if drawing.beside else drawing.out.glob("sheet*.png")  # which of them is written depends on the sizes
    for place in [*sheets, *(place for of_picture in places for place in of_picture)]:
        if place.resolve() in pictures:
            raise ConfigError(
                f"{place} would be overwritten, and is one of the pictures. Give another --out, or fewer pictures."
            )
    return places


def to_pil_list(pictures: Sequence[Tensor]) -> list[Image.Image]:
    """Pictures uint8 [3, h, w] of any sizes as Pillow images."""
    from rasterformer.data.png import to_pil

    return [to_pil(picture[None])[0] for picture in pictures]


def _read(path: Path, reading: Reading) -> Tensor:
    """uint8 [3, h, w]; what had to be changed to make it so is said."""
    import numpy as np
    import torch

    from rasterformer.data.decode import decode_file

    try:
        decoded = decode_file(path, reading)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if decoded.repairs:
        print(f"{path}: {', '.join(decoded.repairs)}")
    return torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1).contiguous()
