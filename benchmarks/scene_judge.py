"""A small network that says what is to be seen in a picture of scenes64: how many objects, which, where, on what floor.

    python -m benchmarks.scene_judge --data FOLDER --out judge.safetensors [--tokenizer RUN ...] [--steps 1000]

FOLDER holds train.webp, train.npz, train.jsonl and the same of test. Trained on real images, on the same with their objects
repainted so that every shape comes in every colour as often, and on what tokenizers make of both. Shape, colour and size have a
linear map each on what is seen at the object's place. At the end it is measured on held-out images, on what the tokenizers
make of them, and on held-out images whose objects were turned by hue into pairs that no image has. At most 5 minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.record import write_json
from benchmarks.scene_captions import COLOURS, FLOORS, MOST_OBJECTS, SHAPES, SIZES, Scene, SceneObject
from benchmarks.scene_set import SceneSet, held_out_colours, read_scenes, repainted, slot_masks, turned
from rasterformer.tokenizer import load_tokenizer

CELL = 4  # pixels of a cell of the features
NUM_LABELS = 5  # sky, floor, three shapes
BATCH = 48
RECONSTRUCTED = 400  # training images that go through each tokenizer, and as many repainted ones
Reconstruct = Callable[[Tensor], Tensor]  # uint8 [B, 3, 64, 64] -> the same
HEADS = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}


class SceneJudge(nn.Module):
    """Convolutions to cells of 4x4 pixels, a place for each slot among them, and what stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(5, 32), _layer(32, 64, stride=2), _layer(64, 64), _layer(64, 128, stride=2))
        self.local = _layer(128, 128)
        self.context = nn.ModuleList(_layer(128, 128, dilation=d) for d in (2, 4))
        self.places = nn.Conv2d(128, MOST_OBJECTS, 1)
        self.labels = nn.Conv2d(128, NUM_LABELS, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in HEADS.items()})
        self.count = nn.Linear(256, MOST_OBJECTS)
        self.floor = nn.Linear(128, len(FLOORS))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images uint8 or float [B, 3, 64, 64] in 0..255 -> logits, float32.

        `count` and `floor` [B, 3]; `shape`, `colour` and `size` of slots [B, 3, n]; `places` [B, 3, 16, 16] and `labels`
        [B, 5, 16, 16] of cells.
        """
        height, width = images.shape[2:]
        rows = torch.linspace(-1, 1, height).view(1, 1, -1, 1).expand(len(images), 1, height, width)
        columns = torch.linspace(-1, 1, width).view(1, 1, 1, -1).expand(len(images), 1, height, width)
        pixels = torch.cat([images.float() / 127.5 - 1, rows, columns], 1)
        seen = self.local(self.stem(pixels.contiguous(memory_format=torch.channels_last)))
        around = seen
        for layer in self.context:
            around = around + layer(around)
        places = self.places(around)
        share = places.float().flatten(2).softmax(-1).to(seen.dtype)  # [B, 3, cells]
        both = torch.cat([seen, around], 1).flatten(2)  # [B, 256, cells]
        there = share @ both.transpose(1, 2)  # [B, 3, 256]
        summary = torch.cat([around.mean((2, 3)), around.amax((2, 3))], 1)
        found = {name: head(there) for name, head in self.heads.items()}
        found |= {"count": self.count(summary), "floor": self.floor(seen.mean((2, 3)))}
        found |= {"places": places, "labels": self.labels(around)}
        return {name: logits.float() for name, logits in found.items()}

    @torch.inference_mode()
    def scenes(self, images: Tensor) -> list[Scene]:
        """Returns what is seen in images uint8 [N, 3, 64, 64], the likeliest of each."""
        found: list[Scene] = []
        for group in images.split(100):
            logits = self(group)
            best = {name: logits[name].argmax(-1) for name in (*HEADS, "count", "floor")}
            for k in range(len(group)):
                objects = tuple(
                    SceneObject(
                        SHAPES[int(best["shape"][k, slot])],
                        COLOURS[int(best["colour"][k, slot])],
                        SIZES[int(best["size"][k, slot])],
                    )
                    for slot in range(int(best["count"][k]) + 1)
                )
                found.append(Scene(objects, FLOORS[int(best["floor"][k])]))
        return found


def load_judge(path: Path) -> SceneJudge:
    """Reads weights that `main` wrote."""
    judge = SceneJudge()
    judge.load_state_dict(load_file(path))
    judge.eval()
    return judge


def true_scenes(scenes: SceneSet) -> list[Scene]:
    """What the annotations say."""
    return [
        Scene(
            tuple(
                SceneObject(SHAPES[shape], COLOURS[colour], SIZES[size])
                for shape, colour, size in zip(shapes, colours, sizes, strict=True)
                if shape >= 0
            ),
            FLOORS[floor],
        )
        for shapes, colours, sizes, floor in zip(
            scenes.shapes.tolist(),
            scenes.colours.tolist(),
            scenes.sizes.tolist(),
            scenes.floors.tolist(),
            strict=True,
        )
    ]


def loss(judge: SceneJudge, images: Tensor, scenes: SceneSet) -> Tensor:
    """Cross-entropies of all that is said, and, so that it learns sooner, of where objects lie and what each cell shows."""
    logits = judge(images)
    there = scenes.shapes >= 0
    count = there.sum(1)
    total: Tensor = F.cross_entropy(logits["count"], count - 1) + 0.5 * F.cross_entropy(logits["floor"], scenes.floors)
    for name, wanted in (("shape", scenes.shapes), ("colour", scenes.colours), ("size", scenes.sizes)):
        total = total + F.cross_entropy(logits[name][there], wanted[there])
    cells = scenes.labels[:, CELL // 2 :: CELL, CELL // 2 :: CELL]
    total = total + 0.5 * F.cross_entropy(logits["labels"], cells)
    middles = torch.arange(cells.shape[2]) * CELL + (CELL - 1) / 2
    near = torch.exp(-(((middles - scenes.columns[..., None]) / 4) ** 2) / 2)[:, :, None]  # [B, 3, 1, w]
    of_shape = (cells[:, None] == (scenes.shapes + 2)[:, :, None, None]).float() + 1e-3  # [B, 3, h, w]
    wanted_place = (near * of_shape).flatten(2)
    wanted_place = wanted_place / wanted_place.sum(-1, keepdim=True).clamp(min=1e-9)
    log_places = logits["places"].flatten(2).log_softmax(-1)
    total = total - 0.3 * (wanted_place * log_places).sum(-1)[there].mean()
    return total


def train_judge(training: SceneSet, reconstruct: list[Reconstruct], *, steps: int) -> SceneJudge:
    """Trains on images, repainted images, and what each of `reconstruct` (images -> images) makes of both; prints as it goes."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    judge = SceneJudge()
    masks = slot_masks(training)
    pools = [training]
    some = torch.arange(min(RECONSTRUCTED, len(training)))
    for one in reconstruct:
        first = training.rows(some)
        for pool in (first, repainted(first, masks[some], drawn_colours(first, rng))):
            with torch.autocast("cpu", torch.bfloat16):
                pools.append(reconstructed(pool, one))
        print("reconstructed", flush=True)
    evenly = {pool is training: one_of_each_count(pool) for pool in pools}
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    began = time.perf_counter()
    for step in range(steps):
        pool = pools[0] if step % 2 == 0 else pools[int(torch.randint(len(pools), (), generator=rng))]
        index = torch.multinomial(evenly[pool is training], BATCH, replacement=True, generator=rng)
        batch = pool.rows(index)
        if pool is training and step % 4 != 3:
            batch = repainted(batch, masks[index], drawn_colours(batch, rng))
        batch = mirrored(batch) if int(torch.randint(2, (), generator=rng)) else batch
        images = disturbed(batch.images, rng)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(judge, images, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 in (0, 1):
            of = "images" if pool is training else "reconstructions"
            print(f"step {step}: {value.item():.3f} on {of}, {time.perf_counter() - began:.0f} s", flush=True)
    judge.eval()
    return judge


def drawn_colours(scenes: SceneSet, rng: torch.Generator) -> Tensor:
    """A colour for each slot, drawn evenly, the same for slots alike in shape and colour: int64 [N, 3]."""
    table = torch.randint(len(COLOURS), (len(scenes), len(SHAPES) * len(COLOURS)), generator=rng)
    kind = scenes.shapes.clamp(min=0) * len(COLOURS) + scenes.colours.clamp(min=0)
    return torch.where(scenes.shapes >= 0, table.gather(1, kind), -1)


def reconstructed(scenes: SceneSet, one: Reconstruct) -> SceneSet:
    """The same scenes as a tokenizer gives them back."""
    return replace(scenes, images=torch.cat([one(group) for group in scenes.images.split(32)]))


def one_of_each_count(scenes: SceneSet) -> Tensor:
    """Weights [N] by which scenes of one, two and three objects are drawn as often."""
    count = (scenes.shapes >= 0).sum(1)
    return (1 / count.bincount(minlength=MOST_OBJECTS + 1).clamp(min=1).double())[count]


def mirrored(scenes: SceneSet) -> SceneSet:
    """Left and right exchanged, objects again from left to right."""
    count = (scenes.shapes >= 0).sum(1, keepdim=True)
    place = torch.arange(MOST_OBJECTS).expand(len(scenes), -1)
    order = torch.where(place < count, count - 1 - place, place)

    def turned_round(slots: Tensor) -> Tensor:
        return slots.gather(1, order)

    return replace(
        scenes,
        images=scenes.images.flip(3),
        labels=scenes.labels.flip(2),
        shapes=turned_round(scenes.shapes),
        colours=turned_round(scenes.colours),
        sizes=turned_round(scenes.sizes),
        columns=turned_round(scenes.images.shape[3] - 1 - scenes.columns),
    )


def disturbed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Other brightness, contrast and sharpness, and noise: uint8 -> float32 [B, 3, H, W]."""
    x = images.float()

    def each(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(x), 1, 1, 1, generator=rng)

    x = (x - 128) * each(0.9, 1.1) + 128 + each(-10, 10)
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = torch.lerp(x, blurred, each(-0.3, 0.6))
    x = x + torch.randn(x.shape, generator=rng) * each(0, 6)
    return x.clamp(0, 255)


def accuracies(judge: SceneJudge, scenes: SceneSet) -> dict[str, Any]:
    """The share right of each attribute (slots of the true number of objects), and of images where everything is."""
    logits = _all_logits(judge, scenes.images)
    there = scenes.shapes >= 0
    count_right = logits["count"].argmax(-1) == there.sum(1) - 1
    floor_right = logits["floor"].argmax(-1) == scenes.floors
    right = {
        name: logits[name].argmax(-1) == wanted
        for name, wanted in (("shape", scenes.shapes), ("colour", scenes.colours), ("size", scenes.sizes))
    }
    everything = count_right & floor_right
    for values in right.values():
        everything = everything & (values | ~there).all(1)
    found = {name: values[there].double().mean().item() for name, values in right.items()}
    found |= {"count": count_right.double().mean().item(), "floor": floor_right.double().mean().item()}
    return found | {"everything": everything.double().mean().item(), "images": len(scenes)}


def recombined(scenes: SceneSet) -> tuple[SceneSet, Tensor]:
    """Held-out pairs made of real images, by hue: the images, and which slots were turned, bool [N, 3]."""
    colours = held_out_colours(scenes)
    has_any = (colours >= 0).any(1).nonzero()[:, 0]
    chosen, wanted = scenes.rows(has_any), colours[has_any]
    return turned(chosen, slot_masks(chosen), wanted), wanted >= 0


def measure_judge(judge: SceneJudge, held_out: SceneSet, reconstruct: dict[str, Reconstruct]) -> dict[str, Any]:
    """All that is known of a judge, as JSON values."""
    pairs, _ = recombined(held_out)
    sets = {"held-out images": held_out, "held-out pairs, by hue": pairs}
    for name, one in reconstruct.items():
        for of, pool in list(sets.items())[:2]:
            sets[f"{of}, reconstructed by {name}"] = reconstructed(pool, one)
    return {name: accuracies(judge, scenes) for name, scenes in sets.items()}


def _all_logits(judge: SceneJudge, images: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        parts = [judge(group) for group in images.split(100)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _layer(in_width: int, out_width: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_width, out_width, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_width), nn.ReLU())


def main(arguments: list[str] | None = None) -> None:
    """Trains, measures, writes weights and, beside them, what they are worth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scene_judge", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of scenes64")
    parser.add_argument("--out", type=Path, required=True, help="weights, .safetensors")
    parser.add_argument("--tokenizer", type=Path, nargs="*", default=[], help="runs whose artefacts must not matter")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--measure-only", action="store_true", help="the weights are there; --out is read")
    options = parser.parse_args(arguments)
    reconstruct: dict[str, Reconstruct] = {
        folder.name: load_tokenizer(folder).reconstruct for folder in options.tokenizer
    }
    if options.measure_only:
        judge = load_judge(options.out)
    else:
        judge = train_judge(read_scenes(options.data, "train"), list(reconstruct.values()), steps=options.steps)
        save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, options.out)
    found = measure_judge(judge, read_scenes(options.data, "test"), reconstruct)
    for name, shares in found.items():
        print(name, {key: round(value, 4) for key, value in shares.items()}, flush=True)
    write_json(options.out.with_suffix(".json"), found)


if __name__ == "__main__":
    main()
