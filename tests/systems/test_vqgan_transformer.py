"""The prior over codes: causality, steps, the paper's form written as functions, what training disturbs, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.autoregressive.guidance import Guided
from rasterformer.codecs.orders import code_order
from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond
from rasterformer.recipe import TextConfig
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan.model import build as build_autoencoder
from rasterformer.systems.vqgan_transformer.config import Config
from rasterformer.systems.vqgan_transformer.model import CodeTransformer, Vocabulary, build
from rasterformer.tasks import SourceShape

GRID, VOCAB, CLASSES = (3, 4), 7, 5
LENGTH, BATCH = 12, 3
TINY = Config(tokenizer="run", width=16, depth=2, num_heads=2, mlp_width=20)
NEW = replace(
    TINY,
    activation="swiglu",
    norm="rms",
    bias=False,
    qk_norm=True,
    positions="none",
    rotary=True,
    num_kv_heads=1,
    shared_vocabulary=False,
)
CASES: dict[str, tuple[Config, dict[str, Any]]] = {
    "paper": (TINY, {}),
    "class": (TINY, {"classes": CLASSES}),
    "codes": (TINY, {"condition": 9, "condition_grid": GRID}),
    "smaller condition": (TINY, {"condition": 9, "condition_grid": (1, 2)}),
    "aligned": (replace(TINY, aligned_condition=True), {"condition": 9, "condition_grid": GRID}),
    "text": (TINY, {"text": TextConfig(dim=6, length=5)}),
    "bytes": (TINY, {"text": TextConfig("bytes", dim=6, length=5)}),
    "new": (NEW, {"classes": CLASSES, "condition": 9, "condition_grid": GRID}),
    "everything": (
        replace(NEW, aligned_condition=True, order="spiral_in", drop_condition_prob=0.2),
        {"classes": CLASSES, "condition": 9, "condition_grid": GRID, "text": TextConfig(dim=6, length=5)},
    ),
}


def make(
    config: Config,
    *,
    classes: int = 0,
    condition: int = 0,
    condition_grid: tuple[int, int] | None = None,
    text: TextConfig | None = None,
) -> CodeTransformer:
    """In float64, every weight drawn at random: nothing is zero by its initial value."""
    torch.manual_seed(0)
    order = code_order(config.order, GRID)
    model = CodeTransformer(
        config, order, GRID, Vocabulary(VOCAB, classes, condition), condition_grid=condition_grid, text=text
    ).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model.eval()


def case(name: str) -> CodeTransformer:
    config, sizes = CASES[name]
    return make(config, **sizes)


def random_x(batch: int = BATCH, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (batch, LENGTH, 1), generator=torch.Generator().manual_seed(seed))


def cond_of(model: CodeTransformer, batch: int = BATCH, seed: int = 5) -> Cond:
    rng = torch.Generator().manual_seed(seed)
    reads, grid = model.text_input, model.condition_grid
    label = torch.randint(0, CLASSES, (batch,), generator=rng) if model.num_classes else None
    codes = None if grid is None else torch.randint(0, 9, (batch, grid[0] * grid[1]), generator=rng)
    if reads is None:
        return Cond(label=label, codes=codes)
    text_known = torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3])[torch.arange(batch) % 3]
    if reads.is_bytes:
        tokens = torch.randint(0, 256, (batch, 4), generator=rng)
        return Cond(label=label, codes=codes, text_tokens=tokens, text_known=text_known)
    text = torch.randn(batch, 4, reads.dim, generator=rng, dtype=torch.float64)
    return Cond(label=label, codes=codes, text=text, text_known=text_known)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_of_a_code_depend_on_those_before_it_and_no_others(name: str) -> None:
    model, x = case(name), random_x(1)
    cond = cond_of(model, 1)
    logits = model(x, cond)
    assert logits.shape == (1, LENGTH, VOCAB)
    for position in range(LENGTH):
        changed = x.clone()
        changed[:, position] = (x[:, position] + 1) % VOCAB
        moved = (model(changed, cond) - logits).abs().amax((0, 2))  # [L]
        assert not moved[: position + 1].any()
        assert bool((moved[position + 1 :] > 1e-9).all())


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_every_part_of_the_condition_reaches_every_code(name: str) -> None:
    model, x = case(name), random_x(1)
    cond = cond_of(model, 1)
    logits = model(x, cond)
    changes = []
    if cond.label is not None:
        changes.append(replace(cond, label=(cond.label + 1) % CLASSES))
    if cond.codes is not None:
        for place in range(cond.codes.shape[1]):
            codes = cond.codes.clone()
            codes[:, place] = (codes[:, place] + 1) % 9
            changes.append(replace(cond, codes=codes))
    if cond.text is not None:
        for place in range(cond.text.shape[1]):
            text = cond.text.clone()
            text[:, place] += 1
            changes.append(replace(cond, text=text))
    if cond.text_tokens is not None:
        for place in range(cond.text_tokens.shape[1]):
            tokens = cond.text_tokens.clone()
            tokens[:, place] += 1
            changes.append(replace(cond, text_tokens=tokens))
    assert bool(changes) == (name != "paper")
    for changed in changes:
        assert bool(((model(x, changed) - logits).abs().amax((0, 2)) > 1e-9).all())


@torch.no_grad()
@pytest.mark.parametrize("name", ["aligned", "everything"])
def test_an_aligned_condition_is_added_where_its_code_is_predicted(name: str) -> None:
    """Without attention each position sees itself only: a code of the map then changes the logits of its own cell."""
    model, x = case(name), random_x(1)
    for layer in model.layers:
        assert layer.attention is not None
        layer.attention.out.weight.zero_()
        if layer.attention.out.bias is not None:
            layer.attention.out.bias.zero_()
    cond = cond_of(model, 1)
    assert cond.codes is not None
    logits, order = model(x, cond), code_order(model.config.order, GRID).tolist()
    for cell in range(LENGTH):
        codes = cond.codes.clone()
        codes[:, cell] = (codes[:, cell] + 1) % 9
        moved = (model(x, replace(cond, codes=codes)) - logits).abs().amax((0, 2)) > 1e-12
        # the first code is predicted at the last token of the condition, which is that of the last cell
        expected = {order.index(cell)} | ({0} if cell == LENGTH - 1 else set())
        assert set(moved.nonzero()[:, 0].tolist()) == expected


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 5, LENGTH])
@pytest.mark.parametrize("is_guided", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_steps_equal_forward(name: str, is_guided: bool, chunk: int) -> None:
    if is_guided and name == "paper":
        return  # there is no condition to be guided by: test_guidance.py
    config, sizes = CASES[name]
    plain = make(replace(config, drop_condition_prob=0.1) if is_guided else config, **sizes)
    model = Guided(plain, 2.5) if is_guided else plain
    x, cond = random_x(), cond_of(plain)
    if plain.config.drop_condition_prob:
        cond = replace(cond, dropped=torch.tensor([False, True, False]))
    params, state = model.begin(cond, BATCH)
    parts = [params]
    for piece in x.split(chunk, 1):
        params, state = model.step(piece, state)
        parts.append(params)
    torch.testing.assert_close(torch.cat(parts, 1), model(x, cond), rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", ["paper", "everything"])
def test_codes_that_are_taken_back_leave_no_trace(name: str) -> None:
    model, x = case(name), random_x()
    cond, wrong = cond_of(model), random_x(seed=9)
    _, state = model.begin(cond, BATCH)
    _, state = model.step(x[:, :2], state)
    assert model.lookahead(state) == LENGTH - 2
    model.step(wrong[:, 2:9], state)
    state = model.rewind(state, 3)
    model.step(wrong[:, 3:5], state)
    state = model.rewind(state, 3)
    params, _ = model.step(x[:, 3:], state)
    seen = torch.cat([x[:, :2], wrong[:, 2:3], x[:, 3:]], 1)
    torch.testing.assert_close(params, model(seen, cond)[:, 4:], rtol=1e-12, atol=1e-12)


def min_gpt(model: CodeTransformer, tokens: Tensor) -> Tensor:
    """minGPT as functions: tokens int64 [T] -> logits [T, K]. One head and one query at a time."""
    weights = dict(model.named_parameters())
    width, heads = model.config.width, model.config.num_heads
    size = width // heads

    def norm(h: Tensor, name: str) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    h = torch.stack([weights["token_embedding.weight"][t] + weights["position_embedding"][0, i]
                     for i, t in enumerate(tokens.tolist())])  # fmt: skip
    for n in range(model.config.depth):
        name = f"layers.{n}"
        a = norm(h, f"{name}.attention_norm")
        projected = a @ weights[f"{name}.attention.project.weight"].T + weights[f"{name}.attention.project.bias"]
        q, k, v = (projected[:, part * width : (part + 1) * width] for part in range(3))
        mixed = torch.zeros_like(h)
        for head in range(heads):
            here = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                share = torch.softmax(q[i, here] @ k[: i + 1, here].T / math.sqrt(size), 0)
                mixed[i, here] = share @ v[: i + 1, here]
        h = h + mixed @ weights[f"{name}.attention.out.weight"].T + weights[f"{name}.attention.out.bias"]
        a = norm(h, f"{name}.feed_forward_norm")
        up_weight = weights[f"{name}.feed_forward.up.weight"].reshape(-1, width)
        up = a @ up_weight.T + weights[f"{name}.feed_forward.up.bias"]
        up = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
        h = h + up @ weights[f"{name}.feed_forward.down.weight"].T + weights[f"{name}.feed_forward.down.bias"]
    return norm(h, "final_norm") @ weights["head.weight"].T


@torch.no_grad()
@pytest.mark.parametrize("name", ["paper", "class", "codes"])
def test_the_defaults_are_min_gpt(name: str) -> None:
    """[condition, codes] without the last; one table for all tokens; a start token 0 where there is no condition."""
    model, x = case(name), random_x()
    cond = cond_of(model)
    logits = model(x, cond)
    for b in range(BATCH):
        first = torch.tensor([0])
        if cond.label is not None:
            first = cond.label[b : b + 1]
        elif cond.codes is not None:
            first = cond.codes[b]
        expected = min_gpt(model, torch.cat([first, x[b, :-1, 0]]))[len(first) - 1 :]
        torch.testing.assert_close(logits[b], expected, rtol=1e-11, atol=1e-11)


def test_the_shared_table_has_a_row_for_the_largest_vocabulary() -> None:
    sizes = {"classes": 30, "condition": 9, "condition_grid": GRID}
    shared, own = make(TINY, **sizes), make(replace(TINY, shared_vocabulary=False), **sizes)  # type: ignore[arg-type]
    assert shared.token_embedding.num_embeddings == 30
    assert shared.class_embedding is None and shared.condition_embedding is None
    tables = (own.token_embedding, own.class_embedding, own.condition_embedding)
    assert [table.num_embeddings for table in tables if table is not None] == [VOCAB, 30, 9]
    assert shared.head.out_features == own.head.out_features == VOCAB


def test_fresh_weights_are_those_of_the_papers_code() -> None:
    torch.manual_seed(0)
    config = Config(tokenizer="run", width=64, depth=1, num_heads=2, mlp_width=256)
    model = CodeTransformer(config, torch.arange(16), (4, 4), Vocabulary(100))
    assert model.position_embedding is not None and not model.position_embedding.any()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert bool((weight == 1).all()), name
        elif name != "position_embedding":
            assert 0.018 < float(weight.detach().std()) < 0.022, name
    images = torch.randint(0, 100, (4, 16, 1))
    assert float(model.loss(images, Cond(), rng=None).total.detach()) == pytest.approx(math.log(100), abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_the_mean_of_the_codes_nats(name: str) -> None:
    model, x = case(name), random_x()
    cond = cond_of(model)
    loss = model.loss(x, cond, rng=None)
    probs = model(x, cond).softmax(-1)
    nats = [-sum(math.log(float(probs[b, i, x[b, i, 0]])) for i in range(LENGTH)) for b in range(BATCH)]
    assert loss.nats.tolist() == pytest.approx(nats, rel=1e-10)
    assert float(loss.total) == pytest.approx(sum(nats) / (BATCH * LENGTH), rel=1e-10)
    assert loss.dims.tolist() == [LENGTH] * BATCH and loss.bound == "exact"


def test_keep_prob_replaces_codes_of_the_input_and_no_targets() -> None:
    """The share that still equals its code is p + (1 - p) / K; the rest is uniform."""
    keep_prob, batch = 0.7, 3000
    model = make(replace(TINY, keep_prob=keep_prob, depth=1)).train()
    x, given = random_x(batch), dict[str, Tensor]()

    def forward(seen: Tensor, cond: Cond) -> Tensor:
        given["seen"] = seen
        return torch.zeros(batch, LENGTH, VOCAB).scatter(2, x, 5.0)  # prefers the right codes

    model.forward = forward  # type: ignore[method-assign, assignment]
    loss = model.loss(x, Cond(), rng=torch.Generator().manual_seed(0))
    seen = given["seen"]
    share = keep_prob + (1 - keep_prob) / VOCAB
    spread = math.sqrt(share * (1 - share) / x.numel())
    assert abs(float((seen == x).double().mean()) - share) < 5 * spread
    shifts = ((seen - x) % VOCAB)[seen != x]
    counts = torch.bincount(shifts, minlength=VOCAB)[1:].double()
    expected = len(shifts) / (VOCAB - 1)
    assert float(((counts - expected) ** 2 / expected).sum()) < 25  # chi-square, 5 degrees of freedom: p = 1e-4
    assert float(loss.total) == pytest.approx(math.log(math.exp(5) + VOCAB - 1) - 5, rel=1e-5)
    model.eval().loss(x, Cond(), rng=None)
    assert torch.equal(given["seen"], x)


def test_conditions_are_hidden_from_the_given_share_of_images_in_training() -> None:
    prob, batch = 0.3, 4000
    model = make(replace(TINY, drop_condition_prob=prob, depth=1), classes=CLASSES).train()
    x, given = random_x(1).expand(batch, -1, -1), dict[str, Tensor | None]()

    def forward(seen: Tensor, cond: Cond) -> Tensor:
        given["seen"], given["dropped"], given["label"] = seen, cond.dropped, cond.label
        return torch.zeros(batch, LENGTH, VOCAB)

    model.forward = forward  # type: ignore[method-assign, assignment]
    label = torch.arange(batch) % CLASSES
    model.loss(x, Cond(label=label), rng=torch.Generator().manual_seed(0))
    assert given["seen"] is x and given["label"] is label and given["dropped"] is not None
    assert abs(float(given["dropped"].double().mean()) - prob) < 5 * math.sqrt(prob * (1 - prob) / batch)
    dropped, own = given["dropped"], torch.arange(batch) < 1000
    model.loss(x, Cond(label=label, dropped=own), rng=torch.Generator().manual_seed(0))
    assert given["dropped"] is not None and torch.equal(given["dropped"], dropped | own), "hidden already stays so"
    model.eval().loss(x, Cond(label=label), rng=None)
    assert given["dropped"] is None


@torch.no_grad()
def test_what_is_dropped_is_hidden_whole() -> None:
    """Whatever class, text or codes it had; the others are as without `dropped`."""
    model = case("everything")
    x, cond, other = random_x(), cond_of(model), cond_of(model, seed=77)
    dropped = torch.tensor([False, True, True])
    logits = model(x, replace(cond, dropped=dropped))
    torch.testing.assert_close(logits[0], model(x, cond)[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(logits[1], model(x, cond)[1])
    hidden = model(x, replace(other, dropped=dropped))
    torch.testing.assert_close(logits[1:], hidden[1:], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(logits[0], hidden[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "everything"])
def test_padding_of_a_text_does_not_matter(name: str) -> None:
    model, x = case(name), random_x()
    cond = cond_of(model)
    assert cond.text is not None and cond.text_known is not None
    logits = model(x, cond)
    noise = torch.randn(cond.text.shape, dtype=torch.float64)
    other = torch.where(cond.text_known[..., None], cond.text, noise)
    torch.testing.assert_close(model(x, replace(cond, text=other)), logits, rtol=1e-12, atol=1e-12)
    longer = replace(cond, text=F.pad(cond.text, (0, 0, 0, 1), value=3.0), text_known=F.pad(cond.text_known, (0, 1)))
    torch.testing.assert_close(model(x, longer), logits, rtol=1e-12, atol=1e-12)
    shorter = replace(cond, text=cond.text[:, :2], text_known=cond.text_known[:, :2])
    torch.testing.assert_close(model(x, shorter)[1:], logits[1:], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x, shorter)[0], logits[0])
    whole = replace(cond, text_known=None)
    torch.testing.assert_close(model(x, whole)[0], logits[0], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_state_bytes_are_those_that_begin_allocates() -> None:
    model = case("everything")
    _, state = model.begin(cond_of(model), BATCH)
    kept = sum(layer.nbytes for layer in state.layers)
    assert state.aligned is not None
    assert model.state_bytes(BATCH) == kept + state.aligned.numel() * state.aligned.element_size()
    assert model.state_bytes(2 * BATCH) == 2 * model.state_bytes(BATCH)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_layers_give_nearly_the_same_float_logits(name: str) -> None:
    config, sizes = CASES[name]
    model = make(config, **sizes).float()
    cond = cond_of(model)
    cond = replace(cond, text=None if cond.text is None else cond.text.float())
    rounded, x = model.to_bfloat16(), random_x()
    exact, close = model(x, cond), rounded(x, cond)
    assert close.dtype == torch.float32 and model.token_embedding.weight.dtype == torch.float32
    assert not torch.equal(exact, close)
    assert float((exact - close).abs().mean()) < 0.1 * float(exact.abs().mean())
    params, _ = rounded.begin(cond, BATCH)
    torch.testing.assert_close(params[:, 0], close[:, 0], rtol=0.2, atol=0.2)


GOOD_COND = {"label": torch.tensor([0, 1, 4]), "codes": torch.zeros(BATCH, 12, dtype=torch.int64),
             "text": torch.zeros(BATCH, 4, 6, dtype=torch.float64)}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("everything", {"label": None}, "label is missing: this model was trained with 5 classes"),
        ("everything", {"codes": None}, "codes is missing: this model was trained with 9 codes of a condition"),
        ("everything", {"text": None}, "text is missing: this model was trained with states of a text encoder"),
        (
            "text",
            {"label": GOOD_COND["label"], "codes": None},
            "label was given, but this model was trained without classes",
        ),
        ("text", {"label": None}, "codes was given, but this model was trained without codes"),
        ("class", {"codes": None}, "text was given, but this model was trained without texts"),
        (
            "everything",
            {"label": torch.tensor([0, 1])},
            r"label = \[0, 1\] must have one class index in 0\.\.4 for each of 3 images",
        ),
        ("everything", {"codes": torch.zeros(4, 12, dtype=torch.int64)}, "codes has 4 entries for 3 images"),
        ("everything", {"label": torch.tensor([0, 5, 1])}, r"label = \[0, 5, 1\] must have one class index in 0\.\.4"),
        ("everything", {"label": torch.tensor([0, -1, 1])}, r"label = \[0, -1, 1\] must have one class index"),
        (
            "everything",
            {"codes": torch.zeros(3, 11, dtype=torch.int64)},
            r"the condition has \[11\] codes; .* 3x4 = 12",
        ),
        ("everything", {"codes": torch.full((3, 12), 9)}, r"the condition has codes 9\.\.9; they must lie in 0\.\.8"),
        ("everything", {"codes": torch.full((3, 12), -1)}, r"codes -1\.\.-1; they must lie in 0\.\.8"),
        ("everything", {"text": torch.zeros(2, 4, 6)}, "text has 2 entries for 3 images"),
        (
            "everything",
            {"source": torch.zeros(3, 3, 4, 4, dtype=torch.uint8)},
            "source was given, but .* it takes codes",
        ),
        (
            "everything",
            {"text": torch.zeros(3, 6, 6)},
            r"text is \[3, 6, 6\]; this model takes \[B, S\] states of 6 dim.*1\.\.5",
        ),
        (
            "everything",
            {"text": torch.zeros(3, 4, 7)},
            r"text is \[3, 4, 7\]; this model takes \[B, S\] states of 6 dim",
        ),
    ],
)
def test_conditions_that_the_model_does_not_know_are_refused(name: str, changes: Any, message: str) -> None:
    model, cond = case(name), Cond(**{**GOOD_COND, **changes})
    for call in (lambda: model(random_x(), cond), lambda: model.begin(cond, BATCH)):
        with pytest.raises(ConfigError, match=message):
            call()


def test_hiding_a_condition_needs_a_model_that_was_trained_so() -> None:
    model = case("class")
    cond = replace(cond_of(model), dropped=torch.tensor([True, False, False]))
    with pytest.raises(ConfigError, match=r"drop_condition_prob = 0\.1"):
        model(random_x(), cond)


WRONG: list[tuple[dict[str, Any], str]] = [
    *(({name: 0}, f"model.{name} = 0 must be at least 1")
      for name in ("width", "depth", "num_heads", "mlp_width")),
    ({"num_heads": 3}, "model.num_heads = 3 does not divide model.width = 16. Use 2"),
    ({"rotary": True, "num_heads": 8}, "model.rotary = true needs heads of a multiple of 4 dimensions, each has 2"),
    ({"num_kv_heads": 3}, "model.num_kv_heads = 3 does not divide model.num_heads = 2"),
    ({"num_kv_heads": 0}, "model.num_kv_heads = 0 does not divide"),
    ({"num_coordinates": 1}, "model.num_coordinates = 1 must be at least 2"),
    ({"window": (4, 1)}, "model.window = (4, 1) must be two numbers of at least 2 codes"),
    ({"window": (4, 4), "order": "morton"}, "model.order = 'morton' must be raster"),
    ({"positions": "none"}, "model.positions = 'none' and model.rotary = false"),
    ({"dropout_prob": 1.0}, "model.dropout_prob = 1.0 must lie in 0..1"),
    ({"keep_prob": 0.0}, "model.keep_prob = 0.0 must lie above 0"),
    ({"drop_condition_prob": 1.0}, "model.drop_condition_prob = 1.0 must lie in 0..1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"), WRONG, ids=lambda value: None if isinstance(value, str) else str(value)
)
def test_what_is_wrong_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    assert TINY.problems() == NEW.problems() == Config().problems() == []
    assert message in " ".join(replace(TINY, **changes).problems())


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, "inpaint", "task.name = 'inpaint' has no form in codes"),
        ({"condition_tokenizer": "run"}, None, "model.condition_tokenizer is set, but there is no task"),
        ({"coordinates": True}, "super_resolution", "model.coordinates is for models without a task"),
        ({"aligned_condition": True}, None, "model.aligned_condition needs a task, or model.coordinates"),
    ],
)
def test_what_does_not_fit_the_task_is_named(changes: dict[str, Any], task: str | None, message: str) -> None:
    assert message in " ".join(replace(TINY, **changes).fit_problems(task=task, image_size=16))


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, None),
        ({}, "super_resolution"),
        ({"condition_tokenizer": "run"}, "edges"),
        ({"coordinates": True, "aligned_condition": True}, None),
    ],
)
def test_what_fits_the_task_has_no_problems(changes: dict[str, Any], task: str | None) -> None:
    assert replace(TINY, **changes).fit_problems(task=task, image_size=16) == []


def codec(size: int = 16, levels: int = 2) -> CodeCodec:
    config = TokenizerConfig(base_width=4, multipliers=(1,) * levels, res_blocks=1, attention_levels=(),
                             middle_attention=False, z_channels=4, norm_groups=2, vocab_size=VOCAB, dim=4)  # fmt: skip
    return CodeCodec(build_autoencoder(config), size)


@pytest.mark.parametrize(
    ("changes", "more", "window", "condition_grid"),
    [
        ({}, {}, (8, 8), None),
        ({"window": (4, 6)}, {}, (4, 6), None),
        ({"coordinates": True}, {}, (8, 8), (8, 8)),
        ({"coordinates": True, "window": (4, 4)}, {}, (4, 4), (4, 4)),
        ({}, {"source": SourceShape(3, 4, False)}, (8, 8), (8, 8)),
        ({"window": (4, 4)}, {"source": SourceShape(3, 16, False), "condition": codec(16, 3)}, (4, 4), (2, 2)),
    ],
)
def test_build_gives_window_and_condition_their_sizes(
    changes: dict[str, Any], more: dict[str, Any], window: tuple[int, int], condition_grid: tuple[int, int] | None
) -> None:
    tokenizers = {"tokenizer": codec()} | (
        {"condition_tokenizer": more.pop("condition")} if "condition" in more else {}
    )
    config = replace(TINY, num_coordinates=20, **changes)
    made, model = build(config, image_size=16, num_classes=2, tokenizers=tokenizers, **more)
    assert made.grid == (8, 8) and model.grid == window and model.condition_grid == condition_grid
    assert model.x_shape == (window[0] * window[1], 1) and model.num_classes == 2
    assert model.vocabulary.condition == (20 if "coordinates" in changes else VOCAB if condition_grid else 0)


def test_build_gives_codec_and_model_the_same_order() -> None:
    made, model = build(
        replace(TINY, order="spiral_out"), image_size=16, num_classes=0, tokenizers={"tokenizer": codec()}
    )
    assert torch.equal(made.order, code_order("spiral_out", (8, 8))) and torch.equal(model.order, made.order)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, {"tokenizers": None}, "model.tokenizer is missing"),
        ({"window": (9, 4)}, {}, r"model.window = \(9, 4\) is larger than the 8x8 codes of images of 16"),
        (
            {"window": (3, 4)},
            {
                "source": SourceShape(3, 16, False),
                "tokenizers": {"tokenizer": codec(), "condition_tokenizer": codec(16, 3)},
            },
            r"a window of \(3, 4\) codes of \(8, 8\) does not cut whole codes out of the condition's \(4, 4\)",
        ),
        (
            {"aligned_condition": True},
            {
                "source": SourceShape(3, 16, False),
                "tokenizers": {"tokenizer": codec(), "condition_tokenizer": codec(16, 3)},
            },
            r"model.aligned_condition = true needs a condition of 8x8 codes like the image's, not \(4, 4\)",
        ),
    ],
)
def test_build_refuses_what_does_not_fit(changes: dict[str, Any], more: dict[str, Any], message: str) -> None:
    arguments = {"tokenizers": {"tokenizer": codec()}, **more}
    with pytest.raises(ConfigError, match=message):
        build(replace(TINY, **changes), image_size=16, num_classes=0, **arguments)
