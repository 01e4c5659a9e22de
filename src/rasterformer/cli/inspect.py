"""`rasterformer inspect`: what a model folder, a run, a checkpoint or a picture is. Folders are read without torch."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.manifest import MANIFEST, read_json, standing, tensor_header, verify


def inspect(
    path: Path,
    *,
    order: Path | None = None,
    position: Annotated[
        str | None, Parameter(help="ROW,COL of the pixel whose memory --order draws, in pixels.")
    ] = None,
) -> None:
    """Say what a model folder, a run, a checkpoint, a codes file or a picture of rasterformer is.

    Args:
        path: the folder, the codes file or the PNG file.
        order: draw the model's generation order and the memory of one pixel into this PNG file.
        position: that pixel. Default: the centre.

    Raises:
        ConfigError: --position is not ROW,COL, is given without --order, or --order is given with a picture.
        CheckpointError: the folder is none of ours, or a file in it is damaged.
        DataError: the file does not exist, is a picture without our metadata, or no file of codes.
    """
    if position is not None and order is None:
        raise ConfigError(f"--position {position} needs --order OUT.png.")
    if path.is_file():
        if order is not None:
            raise ConfigError(f"--order needs a model; {path} is a file.")
        if path.suffix == ".safetensors":
            _print_codes(path)
        else:
            _print_picture(path)
        return
    pixel = None if position is None else _pixel(position)
    for place in _parts(path):
        _print_folder(place)
    if order is not None:
        from rasterformer import load
        from rasterformer.evaluation.order_picture import draw_order

        draw_order(load(path), order, pixel)
        print(f"{order} written.")


def _parts(path: Path) -> list[Path]:
    """The verified folders of a run (its model and its checkpoints), or the folder itself."""
    folder = standing(path)
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(
        {
            manifest.parent
            for pattern in (f"*/{MANIFEST}", f"checkpoints/step-*/{MANIFEST}")
            for manifest in folder.glob(pattern)
            if manifest.parent.suffix not in (".tmp", ".old")
        }
    )
    if not found and (folder / "prior").is_dir():
        raise CheckpointError(f"{path} is a pipeline's folder. Its model is {path / 'prior'}.")
    if not found:
        raise CheckpointError(f"{path} is no model folder, run or checkpoint: no {MANIFEST} in it or below it.")
    return found


def _print_folder(folder: Path) -> None:
    sizes = verify(folder)
    config = read_json(folder / "config.json")
    recipe: dict[str, Any] = config.get("recipe", {})
    upscalers: list[dict[str, Any]] = config.get("upscalers", [])
    rows = {
        "written by": f"rasterformer {config.get('rasterformer_version')}, format {config.get('format_version')}",
        "system": recipe.get("system"),
        "image": (upscalers[-1] if upscalers else config).get("image_shape"),
        "steps": config.get("steps"),
        "classes": ", ".join(config.get("class_names", [])) or config.get("num_classes") or None,
    }
    counts = {}
    for name in sizes:
        if name.endswith(".safetensors"):
            header = tensor_header(folder / name)
            counts[name] = count = sum(math.prod(shape) for _, shape in header.values())
            dtypes = ", ".join(sorted({dtype for dtype, _ in header.values()}))
            rows[name] = f"{count:,} numbers in {len(header)} tensors, {dtypes}"
    for name, part in config.get("tokenizers", {}).items():
        rows[name] = f"{part['recipe']['system']}, {part['steps']:,} steps"
    if upscalers:
        for number, part in enumerate([config, *upscalers]):
            before = None if number == 0 else [config, *upscalers][number - 1]
            group = "model" if number == 0 else f"upscaler_{number}"
            rows[f"stage {number + 1}"] = _stage(part, before, counts.get(f"{group}.safetensors", 0))
    else:
        rows["text encoder"] = config.get("text_encoder")
    rows["files"] = f"{len(sizes)} verified, {sum(sizes.values()):,} bytes"
    print(folder)
    for label, value in rows.items():
        if value is not None:
            print(f"  {label:20} {value}")
    fields = _fields(recipe)
    if upscalers:
        print("recipe of stage 1:")
    for name, value in fields.items():
        print(f"  {name} = {json.dumps(value)}")
    for number, part in enumerate(upscalers, start=1):
        print(f"recipe of stage {number + 1}, only what differs from stage 1 (null: not there):")
        own = _fields(part.get("recipe", {}))
        for name in {**fields, **own}:
            if own.get(name) != fields.get(name):
                print(f"  upscaler_{number}.{name} = {json.dumps(own.get(name))}")


def _fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`section.field` -> value."""
    return {
        f"{section}.{field}": value
        for section in ("task", "text", "model", "data", "training")
        for field, value in (recipe.get(section) or {}).items()
    }


def _stage(config: Mapping[str, Any], before: Mapping[str, Any] | None, count: int) -> str:
    """A model of a cascade: what it draws from what. `before` is the one whose images it enlarges."""
    sources = [] if before is None else [f"{_side(before)} pixels"]
    if config.get("num_classes"):
        sources.append("classes")
    if config["recipe"].get("text"):
        sources.append("texts")
    facts = [
        f"{_side(config)} pixels from {' and '.join(sources) or 'nothing'}",
        f"{count:,} parameters",
        f"{config.get('steps', 0):,} steps",
    ]
    if config.get("text_encoder"):
        facts.append(f"text encoder {config['text_encoder']}")
    return ", ".join(facts)


def _side(config: Mapping[str, Any]) -> str:
    _, height, width = config["image_shape"]
    return f"{height}x{width}"


def _print_codes(path: Path) -> None:
    from rasterformer.data.codes import load_codes

    found = load_codes(path)
    count, variants, rows, cols = found.codes.shape
    about = {
        "images": f"{count:,}, {variants} variant{'s' if variants > 1 else ''} of each",
        "codes": f"{rows}x{cols} of {found.vocab_size:,}",
        "tokenizer": found.tokenizer,
        "condition": None
        if found.condition is None
        else f"{found.condition_vocab_size:,} codes by {found.condition_tokenizer}",
        "classes": ", ".join(found.class_names) or None,
        "preprocessing": found.preprocessing,
    }
    print(path)
    for label, value in about.items():
        if value is not None:
            print(f"  {label:20} {value}")


def _print_picture(path: Path) -> None:
    from rasterformer.data.png import read_png_metadata

    metadata = read_png_metadata(path)
    if metadata is None:
        raise DataError(f"{path} has no metadata of rasterformer.")
    print(json.dumps(metadata, indent=2, ensure_ascii=False))


def _pixel(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not comma or not row.strip().isdecimal() or not column.strip().isdecimal():
        raise ConfigError(f"--position {text!r} is not ROW,COL; example: 16,16.")
    return int(row), int(column)
