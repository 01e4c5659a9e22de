"""`rasterformer import-weights`: published tokenizers, and transformers over their codes, as model folders of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from rasterformer.cli.scan import printable
from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.manifest import read_json, tensor_header
from rasterformer.weights.project_yaml import first_stage_image_size, prior_settings

if TYPE_CHECKING:
    from torch import Tensor

    from rasterformer.tokenizer import Tokenizer
    from rasterformer.weights.layouts import AutoencoderShape, ImportedAutoencoder

DEFAULT_IMAGE_SIZE = 256  # that of nearly every published model, pixels
_SHOWN = 8  # names in a line


def import_weights(
    file: Path,
    *,
    layout: Literal["taming", "diffusers", "llamagen"],
    out: Path,
    config: Annotated[
        Path | None, Parameter(help="Configuration beside FILE: project.yaml of taming, config.json of diffusers.")
    ] = None,
    image_size: int | None = None,
    lpips: Path | None = None,
) -> None:
    """Make a tokenizer of published weights. Nothing that the file holds is run.

    Of a transformer over codes (taming's Net2Net) OUT gets folders: tokenizer, condition_tokenizer where it has one, and model.

    Args:
        file: .ckpt, .pt, .pth, .bin or .safetensors; of diffusers also the folder.
        layout: the program that made it.
        out: the model folder to write.
        image_size: side of the images it was trained on, pixels. Default: what --config says, else 256.
        lpips: write the weights of the perceptual loss in FILE into this .safetensors file, for model.perceptual_weights.

    Raises:
        CheckpointError: the file cannot be read, or its weights are not those of the layout.
        ConfigError: --config is missing, not read or of other weights, or says another size than --image-size; --lpips is no
            .safetensors file or has nothing to write.
        DataError: --lpips cannot be written.
    """
    if lpips is not None and lpips.suffix != ".safetensors":
        raise ConfigError(f"--lpips {lpips} must end in .safetensors.")
    if layout == "llamagen" and config is not None:
        raise ConfigError(f"--config {config} is not read with --layout llamagen: its files need none. Leave it out.")
    weights, settings = _diffusers_files(file, config) if layout == "diffusers" else (file, None)
    state = _read(weights)
    from rasterformer.weights.layouts import from_diffusers, from_llamagen, from_taming
    from rasterformer.weights.net2net import is_net2net

    if layout == "taming" and is_net2net(state):
        if lpips is not None:
            raise ConfigError(f"--lpips {lpips}: {file} is a transformer over codes and holds no perceptual loss.")
        _import_net2net(file, state, config, image_size, out)
        return
    try:
        if settings is not None:
            imported = from_diffusers(state, read_json(settings))
        else:
            imported = from_llamagen(state) if layout == "llamagen" else from_taming(state)
    except CheckpointError as error:
        raise CheckpointError(f"{file} --layout {layout}: {error}") from error
    if lpips is not None and not imported.lpips:
        raise ConfigError(f"--lpips {lpips}: {file} holds no weights of a perceptual loss.")
    size = _image_size(imported.shape, config if layout == "taming" else None, image_size)
    _save_tokenizer(file, imported, out, size, beta_on="commitment" if layout == "llamagen" else "codebook")
    if lpips is not None:
        _write_lpips(lpips, imported.lpips)
    elif imported.lpips:
        print(
            f"left out: weights of the perceptual loss, {len(imported.lpips)} tensors; --lpips FILE.safetensors keeps them"
        )


def _import_net2net(
    file: Path, state: Mapping[str, Tensor], config: Path | None, image_size: int | None, out: Path
) -> None:
    """Writes `out/tokenizer`, `out/condition_tokenizer` where there is one, and `out/model`."""
    from rasterformer.checkpoint import check_weights
    from rasterformer.recipe_file import recipe_from_dict
    from rasterformer.system import System
    from rasterformer.weights.net2net import from_net2net

    if config is None:
        raise ConfigError(
            f"{file} is a transformer over codes, whose heads and condition are not in its weights. "
            "Give the project.yaml beside it: --config project.yaml."
        )
    try:
        imported = from_net2net(state)
    except CheckpointError as error:
        raise CheckpointError(f"{file} --layout taming: {error}") from error
    shape, first = imported.shape, imported.first_stage.shape
    settings = prior_settings(config, shape)
    if shape.vocab_size != first.vocab_size:
        raise CheckpointError(
            f"{file}: the transformer draws from {shape.vocab_size} tokens, the tokenizer has {first.vocab_size} codes; "
            "only transformers that draw nothing but codes are read."
        )
    size = _image_size(first, config, image_size)
    tokenizers = {"tokenizer": _save_tokenizer(file, imported.first_stage, out / "tokenizer", size, beta_on="codebook")}
    if settings.condition == "codes":
        stage = imported.cond_stage or imported.first_stage
        name = "condition_tokenizer"
        tokenizers[name] = _save_tokenizer(file, stage, out / name, size, beta_on="codebook")
    recipe = {
        "system": "vqgan_transformer",
        "model": {
            **{name: str(out / name) for name in tokenizers},
            "width": shape.width,
            "depth": shape.depth,
            "num_heads": settings.num_heads,
            "mlp_width": shape.hidden,
            **({"coordinates": True, "num_coordinates": settings.size} if settings.condition == "coordinates" else {}),
        },
        "data": {"image_size": size, "use_labels": settings.condition == "class"},
        "task": _maps(tokenizers[name].recipe.model.pictures) if settings.condition == "codes" else None,
    }
    system = System.create(
        recipe_from_dict(recipe, where=str(file)),
        num_classes=settings.size if settings.condition == "class" else 0,
        tokenizers=tokenizers,
    )
    prior = dict(imported.prior)
    positions = system.model.get_parameter("position_embedding").shape[1]
    prior["position_embedding"] = prior["position_embedding"][:, :positions]  # the last is never an input
    check_weights(system.model, prior, str(file))
    system.model.load_state_dict(prior)
    system.save(out / "model")
    print(f"{out / 'model'} written: {shape.depth} layers of width {shape.width}, condition: {settings.condition}.")


def _maps(pictures: str) -> dict[str, str]:
    """The task of a model whose sources are images of their own."""
    return {
        "name": "paired",
        "source_path": "(of the imported model: not known)",
        "source_reduction": "nearest" if pictures == "labels" else "auto",
    }


def _save_tokenizer(
    file: Path, imported: ImportedAutoencoder, out: Path, image_size: int, *, beta_on: str
) -> Tokenizer:
    from rasterformer.tokenizer import Tokenizer

    recipe = {
        "system": "vqgan",
        "model": _model_section(imported.shape, beta_on=beta_on),
        "data": {"image_size": image_size},
    }
    tokenizer = Tokenizer.from_parts({"recipe": recipe}, imported.state, where=str(file))
    tokenizer.save(out)
    for what, count in imported.left_out.items():
        print(f"left out: {what}, {count} tensors")
    if imported.discriminator:
        print(f"left out: the discriminator, {len(imported.discriminator)} tensors")
    print(f"{out} written: {tokenizer.vocab_size:,} codes, one for {tokenizer.factor}x{tokenizer.factor} pixels.")
    return tokenizer


def _image_size(shape: AutoencoderShape, config: Path | None, given: int | None) -> int:
    told = None if config is None else first_stage_image_size(config, shape)
    if told is not None and given not in (None, told):
        raise ConfigError(f"--image-size {given}, but --config {config} says {told}. Leave one of them out.")
    if told is None and given is None:
        print(f"image size: {DEFAULT_IMAGE_SIZE} pixels is assumed, weights do not tell; --image-size sets it")
    return told or given or DEFAULT_IMAGE_SIZE


def _diffusers_files(file: Path, config: Path | None) -> tuple[Path, Path]:
    if not file.is_dir():
        if config is None:
            raise ConfigError(f"{file} --layout diffusers: needs --config CONFIG.json, or the folder that holds both.")
        return file, config
    if config is not None:
        raise ConfigError(f"--config {config} is not read with a folder: {file / 'config.json'} is. Leave it out.")
    names = [f"diffusion_pytorch_model.{kind}" for kind in ("safetensors", "bin")]
    weights = next((file / name for name in names if (file / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{file} holds neither {' nor '.join(names)}.")
    return weights, file / "config.json"


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of the file; what else a torch file asks for or holds is printed."""
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    from rasterformer.weights.pickle_reader import read_checkpoint

    found = read_checkpoint(file)
    for what, names in (
        ("not run: classes and functions that the file asks for", found.stubbed),
        ("not read: entries beside the weights", found.beside),
        ("not read: values among the weights that are no tensors", found.dropped),
    ):
        if names:
            print(
                printable(
                    f"{what}: {', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' * (len(names) > _SHOWN)}"
                )
            )
    return found.tensors


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"{file} is no file.")
    tensor_header(file)
    try:
        return load_file(file)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def _model_section(shape: AutoencoderShape, *, beta_on: str) -> dict[str, Any]:
    pictures = {3: "rgb", 1: "grey"}.get(shape.in_channels, "labels")
    of_labels = {"perceptual": "none", "discriminator": "none", "num_labels": shape.in_channels}
    return {
        "pictures": pictures,
        **(of_labels if pictures == "labels" else {}),
        "base_width": shape.base_width,
        "multipliers": shape.multipliers,
        "res_blocks": shape.res_blocks,
        "attention_levels": shape.attention_levels,
        "middle_attention": shape.middle_attention,
        "z_channels": shape.z_channels,
        "norm_groups": shape.norm_groups,
        "vocab_size": shape.vocab_size,
        "dim": shape.dim,
        "normalise": shape.normalise,
        "beta_on": beta_on,
    }


def _write_lpips(path: Path, weights: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    try:
        path.write_bytes(save({name: tensor.contiguous().clone() for name, tensor in weights.items()}))
    except OSError as error:
        raise DataError(f"--lpips {path} cannot be written: {error.strerror}.") from error
    print(f"{path} written, for model.perceptual: lpips")
