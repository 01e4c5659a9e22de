import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from rasterformer.cli.export import export
from rasterformer.cli.import_weights import import_weights
from rasterformer.errors import CheckpointError, ConfigError, DataError
from rasterformer.loading import load
from rasterformer.tokenizer import load_tokenizer
from rasterformer.weights.export import WEIGHTS
from rasterformer.weights.layouts import OURS, TAMING, AutoencoderShape, expected_shapes, infer_autoencoder, rename

SHAPE = AutoencoderShape(3, 6, 4, 16, 32, (1, 1, 2), 1, (2,), True)


class Callback:
    """Known to nobody but this file."""


def weights(shape: AutoencoderShape = SHAPE) -> dict[str, Tensor]:
    """A VQGAN of taming-transformers, random."""
    rng = torch.Generator().manual_seed(0)
    return {
        str(rename(name, OURS, TAMING, 3)): 0.1 * torch.randn(size, generator=rng)
        for name, size in expected_shapes(shape).items()
    }


def lightning(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"epoch": 1, "callbacks": {Callback: {}}, "state_dict": state}, path)
    return path


def test_taming_checkpoint_becomes_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = weights()
    extras = {"loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    import_weights(lightning(tmp_path / "last.ckpt", state | extras), layout="taming", out=tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer", device="cpu")
    assert (tokenizer.vocab_size, tokenizer.factor, tokenizer.image_size) == (16, 4, 256)
    assert torch.equal(tokenizer.autoencoder.quantiser.codebook, state["quantize.embedding.weight"])
    images = torch.randint(256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert tokenizer.encode(images).shape == (2, 4, 6) and tokenizer.reconstruct(images).shape == images.shape
    printed = capsys.readouterr().out
    for line in ("functions that the file asks for: ", "test_import_weights.Callback",
                 "not read: entries beside the weights: 'epoch'", "left out: model_ema (averages beside the weights), 1 tensors",
                 "left out: the discriminator, 1 tensors",
                 "256 pixels is assumed", "16 codes, one for 4x4 pixels"):  # fmt: skip
        assert line in printed


def test_exported_tokenizer_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_weights(lightning(tmp_path / "x.ckpt", weights()), layout="taming", out=tmp_path / "one", image_size=64)
    export(tmp_path / "one", layout="diffusers", out=tmp_path / "diffusers")
    assert "diffusers written for diffusers: 16 codes" in capsys.readouterr().out
    assert json.loads((tmp_path / "diffusers" / "config.json").read_text())["sample_size"] == 64
    import_weights(tmp_path / "diffusers", layout="diffusers", out=tmp_path / "two", image_size=64)
    one, two = (load_tokenizer(tmp_path / name, device="cpu") for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint


def test_diffusers_weights_apart_from_their_folder(tmp_path: Path) -> None:
    import_weights(lightning(tmp_path / "x.ckpt", weights()), layout="taming", out=tmp_path / "one")
    export(tmp_path / "one", layout="diffusers", out=tmp_path / "d")
    torch.save(load_file(tmp_path / "d" / WEIGHTS), tmp_path / "x.bin")
    import_weights(tmp_path / "x.bin", layout="diffusers", config=tmp_path / "d" / "config.json", out=tmp_path / "two")
    (tmp_path / "d" / WEIGHTS).unlink()
    (tmp_path / "x.bin").rename(tmp_path / "d" / "diffusion_pytorch_model.bin")
    import_weights(tmp_path / "d", layout="diffusers", out=tmp_path / "three")
    prints = {load_tokenizer(tmp_path / name, device="cpu").fingerprint for name in ("one", "two", "three")}
    assert len(prints) == 1


def test_llamagen_codes_have_length_one(tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        for i in range(3):
            name = name.replace(f"encoder.down.{i}.", f"encoder.conv_blocks.{i}.")
            name = name.replace(f"decoder.up.{i}.", f"decoder.conv_blocks.{2 - i}.")
        name = name.replace(".block.", ".res.").replace("mid.block_1", "mid.0")
        return name.replace("mid.attn_1", "mid.1").replace("mid.block_2", "mid.2")

    torch.save({"model": {renamed(name): tensor for name, tensor in weights().items()}}, tmp_path / "vq.pt")
    import_weights(tmp_path / "vq.pt", layout="llamagen", out=tmp_path / "tokenizer")
    quantiser = load_tokenizer(tmp_path / "tokenizer", device="cpu").autoencoder.quantiser
    values = quantiser.lookup(torch.arange(16)[None, None])
    torch.testing.assert_close(values.norm(dim=1), torch.ones(1, 1, 16))


@pytest.mark.parametrize(("channels", "pictures"), [(1, "grey"), (5, "labels")])
def test_other_channels_are_other_pictures(channels: int, pictures: str, tmp_path: Path) -> None:
    shape = AutoencoderShape(channels, 6, 4, 16, 32, (1, 1, 2), 1, (), True)
    save_file(weights(shape), tmp_path / "x.safetensors")
    import_weights(tmp_path / "x.safetensors", layout="taming", out=tmp_path / "out")
    model = load_tokenizer(tmp_path / "out", device="cpu").recipe.model
    assert model.pictures == pictures and model.num_labels == (5 if channels == 5 else None)


def project(path: Path, **network: Any) -> Path:
    params = {"ddconfig": {"resolution": 64, "ch": 32, **network}, "n_embed": 16, "embed_dim": 4}
    path.write_text(yaml.safe_dump({"model": {"params": params}}))
    return path


def test_config_says_the_size_of_the_images(tmp_path: Path) -> None:
    file, config = lightning(tmp_path / "x.ckpt", weights()), project(tmp_path / "p.yaml")
    import_weights(file, layout="taming", config=config, out=tmp_path / "out")
    assert load_tokenizer(tmp_path / "out", device="cpu").image_size == 64


def test_perceptual_weights_are_kept_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lin = torch.full((1, 64, 1, 1), 0.25)
    file = lightning(tmp_path / "x.ckpt", weights() | {"loss.perceptual_loss.lin0.model.1.weight": lin})
    import_weights(file, layout="taming", out=tmp_path / "one")
    assert "left out: weights of the perceptual loss, 1 tensors; --lpips FILE" in capsys.readouterr().out
    import_weights(file, layout="taming", out=tmp_path / "two", lpips=tmp_path / "lpips.safetensors")
    assert torch.equal(load_file(tmp_path / "lpips.safetensors")["lin0.model.1.weight"], lin)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "llamagen", "config": Path("p.yaml")}, ConfigError, "--config p.yaml is not read with --layout llamagen"),
        ({"layout": "taming", "lpips": Path("x.pt")}, ConfigError, "--lpips x.pt must end in .safetensors"),
        ({"layout": "taming", "lpips": Path("x.safetensors")}, ConfigError, "x.ckpt holds no weights of a perceptual loss"),
        ({"layout": "taming", "config": Path("p.yaml"), "image_size": 32}, ConfigError, "--image-size 32, but .*p.yaml says 64"),
        ({"layout": "taming", "config": Path("other.yaml")}, ConfigError, "other weights: ch = 8, the weights say 32"),
        ({"layout": "taming", "image_size": 66}, ConfigError, "data.image_size = 66 is no multiple of 4"),
        ({"layout": "diffusers"}, ConfigError, "x.ckpt --layout diffusers: needs --config CONFIG.json"),
        ({"layout": "llamagen"}, CheckpointError, "layout llamagen: .*the levels have \\[\\] channels"),
        ({"file": Path("folder"), "layout": "diffusers", "config": Path("p.yaml")}, ConfigError, "p.yaml is not read with"),
        ({"file": Path("folder"), "layout": "diffusers"}, CheckpointError, "folder holds neither .*model.safetensors nor"),
        ({"file": Path("no.safetensors"), "layout": "taming"}, CheckpointError, "no.safetensors is no file"),
        ({"file": Path("bad.safetensors"), "layout": "taming"}, CheckpointError, "bad.safetensors has a header"),
        ({"file": Path("net2net.ckpt"), "layout": "taming"}, ConfigError, "net2net.ckpt is a transformer .*--config"),
        ({"file": Path("net2net.ckpt"), "layout": "taming", "lpips": Path("x.safetensors")}, ConfigError, "no perceptual loss"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lightning(Path("x.ckpt"), weights())
    lightning(Path("net2net.ckpt"), {"transformer.tok_emb.weight": torch.zeros(2, 2)})
    project(Path("p.yaml"))
    project(Path("other.yaml"), ch=8)
    Path("folder").mkdir()
    Path("bad.safetensors").write_bytes(b"\x08" + bytes(7) + b"nonsense")
    with pytest.raises(error, match=message):
        import_weights(**{"file": Path("x.ckpt"), "out": Path("out"), **options})
    assert not Path("out").exists()


def test_lpips_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = lightning(tmp_path / "x.ckpt", weights() | {"loss.perceptual_loss.lin0.model.1.weight": torch.ones(1)})
    with pytest.raises(DataError, match="--lpips .*cannot be written: No such file"):
        import_weights(file, layout="taming", out=tmp_path / "out", lpips=tmp_path / "no" / "x.safetensors")


def test_attack_in_a_checkpoint_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
            return eval, (f"open({str(marker)!r}, 'w')",)

    torch.save({"state_dict": weights(), "x": Attack()}, tmp_path / "x.ckpt")
    import_weights(tmp_path / "x.ckpt", layout="taming", out=tmp_path / "out")
    assert not marker.exists()
    assert "not run: classes and functions that the file asks for: __builtin__.eval" in capsys.readouterr().out


def net2net(vocab_size: int, length: int, cond: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A transformer of two layers of width 8 over the codes of `weights()`."""
    rng = torch.Generator().manual_seed(2)
    shapes: dict[str, tuple[int, ...]] = {"tok_emb.weight": (vocab_size, 8), "pos_emb": (1, length, 8)}
    shapes |= {"head.weight": (vocab_size, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
    for i in range(2):
        for part in ("ln1", "ln2"):
            shapes |= {f"blocks.{i}.{part}.weight": (8,), f"blocks.{i}.{part}.bias": (8,)}
        for part in ("attn.key", "attn.query", "attn.value", "attn.proj"):
            shapes |= {f"blocks.{i}.{part}.weight": (8, 8), f"blocks.{i}.{part}.bias": (8,)}
        shapes |= {f"blocks.{i}.mlp.0.weight": (32, 8), f"blocks.{i}.mlp.0.bias": (32,)}
        shapes |= {f"blocks.{i}.mlp.2.weight": (8, 32), f"blocks.{i}.mlp.2.bias": (8,)}
    state = {f"transformer.{name}": torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in weights().items()}
    return state | {f"cond_stage_model.{name}": tensor for name, tensor in (cond or {}).items()}


def prior_project(path: Path, stage: Any, *, vocab_size: int = 16) -> Path:
    first = {"params": {"ddconfig": {"resolution": 32}, "n_embed": 16}}
    network = {"params": {"n_head": 2, "n_layer": 2, "n_embd": 8, "vocab_size": vocab_size}}
    params = {"first_stage_config": first, "transformer_config": network, "cond_stage_config": stage}
    path.write_text(yaml.safe_dump({"model": {"params": params}}))
    return path


@pytest.mark.parametrize(
    ("stage", "length", "num_classes", "coordinates"),
    [
        ("__is_unconditional__", 64, 0, False),
        ({"target": "x.Labelator", "params": {"n_classes": 7}}, 64, 7, False),
        ({"target": "x.CoordStage", "params": {"n_embed": 16, "down_factor": 4}}, 128, 0, True),
    ],
)
def test_transformer_over_codes_becomes_a_model_that_draws(
    stage: Any, length: int, num_classes: int, coordinates: bool, tmp_path: Path
) -> None:
    """8x8 codes: a start token or class, or 64 coordinates, and 63 or 64 codes before the last place."""
    file, config = lightning(tmp_path / "x.ckpt", net2net(16, length)), prior_project(tmp_path / "p.yaml", stage)
    import_weights(file, layout="taming", config=config, out=tmp_path / "out")
    assert load_tokenizer(tmp_path / "out" / "tokenizer", device="cpu").image_size == 32
    system = load(tmp_path / "out" / "model", device="cpu")
    assert system.model.num_classes == num_classes and system.recipe.model.coordinates == coordinates
    assert system.recipe.model.num_heads == 2
    (image,) = system.sample(1, label=3 if num_classes else None, as_tensor=True)
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8


def test_transformer_with_codes_of_label_maps_becomes_a_model_of_pairs(tmp_path: Path) -> None:
    cond = weights(AutoencoderShape(5, 6, 4, 16, 32, (1, 1, 2), 1, (), True))
    file = lightning(tmp_path / "x.ckpt", net2net(16, 128, cond))
    config = prior_project(tmp_path / "p.yaml", {"target": "x.VQSegmentationModel", "params": {}})
    import_weights(file, layout="taming", config=config, out=tmp_path / "out")
    assert load_tokenizer(tmp_path / "out" / "condition_tokenizer", device="cpu").recipe.model.pictures == "labels"
    system = load(tmp_path / "out" / "model", device="cpu")
    labels = torch.randint(5, (1, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    (image,) = system.transform(labels.to(torch.uint8).expand(1, 3, 32, 32), as_tensor=True)
    assert image.shape[-3:] == (3, 32, 32)


def test_transformer_with_codes_of_images_uses_the_first_tokenizer(tmp_path: Path) -> None:
    file = lightning(tmp_path / "x.ckpt", net2net(16, 128))
    config = prior_project(tmp_path / "p.yaml", "__is_first_stage__")
    import_weights(file, layout="taming", config=config, out=tmp_path / "out")
    one, two = (load_tokenizer(tmp_path / "out" / name, device="cpu") for name in ("tokenizer", "condition_tokenizer"))
    assert one.fingerprint == two.fingerprint


def test_transformer_that_draws_more_than_codes_is_refused(tmp_path: Path) -> None:
    file = lightning(tmp_path / "x.ckpt", net2net(20, 64))
    config = prior_project(tmp_path / "p.yaml", "__is_unconditional__", vocab_size=20)
    with pytest.raises(CheckpointError, match="draws from 20 tokens, the tokenizer has 16 codes"):
        import_weights(file, layout="taming", config=config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_of_these_tests_build_what_they_say() -> None:
    ours = {str(rename(name, TAMING, OURS, 3)): tensor for name, tensor in weights().items()}
    assert infer_autoencoder(ours) == SHAPE
