"""VQ-Diffusion: the paper's network written as functions, who sees whom, the loss by hand and by enumeration, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rasterformer.codecs.vq.codec import CodeCodec
from rasterformer.errors import ConfigError
from rasterformer.interfaces import Cond, SampleOptions
from rasterformer.recipe import TextConfig
from rasterformer.systems.vq_diffusion.config import Config
from rasterformer.systems.vq_diffusion.model import VQDiffusion, build
from rasterformer.systems.vqgan.config import Config as TokenizerConfig
from rasterformer.systems.vqgan.model import build as build_autoencoder
from rasterformer.tasks import SourceShape

GRID, CODES, CLASSES = (3, 5), 7, 4
LENGTH, STEPS = 15, 6
STATES = TextConfig(dim=6, length=5)
BYTES = TextConfig(encoder="bytes", dim=8, length=5)
TINY = Config(tokenizer="run", num_steps=STEPS, width=16, depth=2, num_heads=2, mlp_width=20)
NEW = replace(
    TINY, schedule="cosine", step_embedding="sinusoidal", activation="swiglu", bias=False, qk_norm=True, rotary=True
)
CASES: dict[str, tuple[Config, int, TextConfig | None]] = {
    "paper": (TINY, 0, None),
    "paper, text": (TINY, 0, STATES),
    "paper, class": (replace(TINY, mlp="convolution"), CLASSES, None),
    "paper, convolutions and text": (replace(TINY, mlp="convolution", activation="gelu"), 0, STATES),
    "bytes": (TINY, 0, BYTES),
    "pooled": (replace(TINY, pooled_text=True), 0, STATES),
    "new": (NEW, 0, None),
    "new, everything": (NEW, CLASSES, STATES),
}
WITH_TEXT = [name for name, (_, _, text) in CASES.items() if text is not None]
CONDITIONAL = [name for name, (_, classes, text) in CASES.items() if classes or text is not None]


def make(config: Config, classes: int = 0, text: TextConfig | None = None, *, std: float = 0.4) -> VQDiffusion:
    """In float64, every weight drawn at random: nothing is zero by its initial value."""
    torch.manual_seed(0)
    model = VQDiffusion(config, GRID, CODES, num_classes=classes, text=text).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model.eval()


def case(name: str) -> VQDiffusion:
    return make(*CASES[name])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_x(batch: int = 2, *, symbols: int = CODES + 1) -> Tensor:
    return torch.randint(0, symbols, (batch, LENGTH), generator=seeded())


def cond_of(model: VQDiffusion, batch: int = 2) -> Cond:
    """Texts of three tokens, of which some know less."""
    rng = seeded(5)
    label = torch.randint(0, CLASSES, (batch,), generator=rng) if model.num_classes else None
    if model.text_input is None:
        return Cond(label=label)
    known = torch.tensor([[True, True, False], [True, True, True]])[torch.arange(batch) % 2]
    if model.text_input.is_bytes:
        return Cond(label=label, text_tokens=torch.randint(0, 256, (batch, 3), generator=rng), text_known=known)
    text = torch.randn(batch, 3, STATES.dim, generator=rng, dtype=torch.float64)
    return Cond(label=label, text=text, text_known=known)


def with_other_token(cond: Cond, place: int) -> Cond:
    """The condition with one token of every text changed."""
    if cond.text_tokens is not None:
        tokens = cond.text_tokens.clone()
        tokens[:, place] = (tokens[:, place] + 1) % 256
        return replace(cond, text_tokens=tokens)
    assert cond.text is not None
    text = cond.text.clone()
    text[:, place] += torch.arange(STATES.dim)
    return replace(cond, text=text)


# the network


def plain_network(model: VQDiffusion, x: Tensor, level: int, cond: Cond) -> Tensor:
    """One image by the paper's section 4.2 and its code: x int64 [L], logits [L, K]. Weights by name, functions by hand."""
    weights = model.state_dict()
    config, (rows, cols) = model.config, GRID
    width, heads = config.width, config.num_heads

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(h: Tensor) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def adaptive(h: Tensor, kind: str, number: int, index: int) -> Tensor:
        embedding = weights[f"{kind}.table.weight"][index, number * width : (number + 1) * width]
        active = embedding * torch.sigmoid(embedding)
        both = active @ weights[f"{kind}.weight"][number] + weights[f"{kind}.bias"][number, 0]
        return norm(h) * (1 + both[:width]) + both[width:]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        size, mixed = width // heads, []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            mixed.append((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v[:, part])
        return torch.cat(mixed, -1)

    def convolve(name: str, h: Tensor) -> Tensor:
        """3x3, or 1x1 where the weight has as many columns as h."""
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if weight.shape[1] == h.shape[1]:
            return h @ weight.T + bias
        taps, out = weight.unflatten(1, (3, 3, -1)), []
        for row, col in product(range(rows), range(cols)):
            total = bias.clone()
            for i, j in product(range(3), range(3)):
                if 0 <= row + i - 1 < rows and 0 <= col + j - 1 < cols:
                    total += taps[:, i, j] @ h[(row + i - 1) * cols + col + j - 1]
            out.append(total)
        return torch.stack(out)

    cells = torch.arange(LENGTH)
    h = weights["token_embedding.weight"][x] + weights["row_embedding.weight"][cells // cols]
    h = h + weights["column_embedding.weight"][cells % cols]
    for number in range(config.depth):
        of_layer = number if cond.text is None else 2 * number
        name = f"layers.{number}"
        qkv = linear(f"{name}.attention.project", adaptive(h, "step_modulation", of_layer, level - 1))
        h = h + linear(f"{name}.attention.out", attend(*qkv.split(width, -1)))
        if cond.text is not None:
            states = norm(linear("text_input.project", cond.text[0])) * weights["text_input.norm.weight"]
            states = states + weights["text_input.norm.bias"]
            q = linear(f"{name}.text_attention.query", adaptive(h, "step_modulation", of_layer + 1, level - 1))
            k, v = linear(f"{name}.text_attention.project", states).split(width, -1)
            h = h + linear(f"{name}.text_attention.out", attend(q, k, v))
        if cond.label is None:
            of_mlp = norm(h) * weights[f"{name}.feed_forward_norm.weight"] + weights[f"{name}.feed_forward_norm.bias"]
        else:
            of_mlp = adaptive(h, "class_modulation", number, int(cond.label[0]))
        up = convolve(f"{name}.feed_forward.up", of_mlp)
        h = h + convolve(f"{name}.feed_forward.down", up * torch.sigmoid(1.702 * up))
    return linear("head", norm(h) * weights["final_norm.weight"] + weights["final_norm.bias"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["paper", "paper, text", "paper, class"])
def test_forward_is_the_papers_network(name: str) -> None:
    model, x = case(name), random_x(1)
    cond = replace(cond_of(model, 1), text_known=None)
    found = model(x, torch.tensor([4]), cond)
    torch.testing.assert_close(found[0], plain_network(model, x[0], 4, cond), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_every_logit_depends_on_every_code_and_on_the_level(name: str) -> None:
    model, x, t = case(name), random_x(1), torch.tensor([3])
    cond = cond_of(model, 1)
    logits = model(x, t, cond)
    assert logits.shape == (1, LENGTH, CODES)
    for position in range(LENGTH):
        changed = x.clone()
        changed[:, position] = (x[:, position] + 1) % (CODES + 1)
        assert bool(((model(changed, t, cond) - logits).abs().amax((0, 2)) > 1e-9).all())
    assert bool(((model(x, t + 1, cond) - logits).abs().amax((0, 2)) > 1e-9).all())


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_TEXT)
def test_every_known_token_reaches_every_code_and_no_padding_does(name: str) -> None:
    model, x, t = case(name), random_x(), torch.tensor([3, 1])
    cond = cond_of(model)  # the first text knows two of its three tokens
    logits = model(x, t, cond)
    for place in range(3):
        moved = (model(x, t, with_other_token(cond, place)) - logits).abs().amax(-1)  # [B, L]
        assert bool((moved[1] > 1e-9).all())
        assert bool((moved[0] > 1e-9).all()) if place < 2 else not moved[0].any()


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_TEXT)
def test_a_text_means_the_same_beside_a_longer_one(name: str) -> None:
    model, x = case(name), random_x()
    cond, t = cond_of(model), torch.tensor([3, 3])
    alone = cond.rows(slice(0, 1))
    shorter = {
        part: getattr(alone, part)[:, :2]
        for part in ("text", "text_tokens", "text_known")
        if getattr(alone, part) is not None
    }
    found = model(x[:1], t[:1], replace(alone, **shorter))
    torch.testing.assert_close(found, model(x, t, cond)[:1], rtol=1e-6, atol=1e-6)  # sines are float32


@torch.no_grad()
def test_pooled_text_is_the_mean_of_the_known_tokens() -> None:
    """Two tokens in either order, and a third one that is not known."""
    model, x, t = case("pooled"), random_x(1), torch.tensor([2])
    cond = cond_of(model, 1)
    assert cond.text is not None
    swapped = replace(cond, text=cond.text[:, [1, 0, 2]])
    torch.testing.assert_close(model(x, t, swapped), model(x, t, cond), rtol=1e-9, atol=1e-9)
    ordinary = case("paper, text")
    assert ordinary.text_input is not None and model.text_input is not None
    states = model.text_input(cond)[0][0, :2].mean(0)
    found = model._text(cond)
    assert found is not None and found[1] is None
    torch.testing.assert_close(found[0], states[None, None], rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", CONDITIONAL)
def test_a_dropped_condition_is_the_same_whatever_was_said(name: str) -> None:
    model, x, t = case(name), random_x(), torch.tensor([3, 3])
    cond = cond_of(model)
    hidden = replace(cond, dropped=torch.tensor([True, False]))
    logits = model(x, t, hidden)
    other = hidden
    if cond.label is not None:
        other = replace(other, label=(cond.label + 1) % CLASSES)
    if cond.text is not None or cond.text_tokens is not None:
        for place in range(3):
            other = with_other_token(other, place)
    found = model(x, t, other)
    torch.testing.assert_close(found[0], logits[0], rtol=0, atol=0)
    assert float((found[1] - logits[1]).abs().min()) > 1e-9
    shown = model(x, t, cond)
    torch.testing.assert_close(shown[1], logits[1], rtol=1e-9, atol=1e-9)
    assert float((shown[0] - logits[0]).abs().min()) > 1e-9


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_state_of_no_text_is_learned(name: str) -> None:
    model, x, t = case(name), random_x(), torch.tensor([3, 3])
    hidden = replace(cond_of(model), dropped=torch.ones(2, dtype=torch.bool))
    logits = model(x, t, hidden)
    assert model.null_text is not None
    assert len(model.null_text) == (1 if model.config.pooled_text else 5)
    for row in range(len(model.null_text)):
        model.null_text[row] += torch.arange(16)
        moved = model(x, t, hidden)
        assert float((moved - logits).abs().min()) > 1e-9
        logits = moved


@torch.no_grad()
def test_a_code_is_embedded_by_its_row_and_its_column() -> None:
    """Without layers, two cells with the same code have the same logits where their rows' and columns' vectors agree."""
    model = make(TINY)
    for layer in model.layers:
        layer.attention.out.weight.zero_()
        layer.attention.out.bias.zero_()
        layer.feed_forward.down.weight.zero_()
        layer.feed_forward.down.bias.zero_()
    model.row_embedding.weight[2] = model.row_embedding.weight[0]
    model.column_embedding.weight[4] = model.column_embedding.weight[1]
    logits = model(torch.full((1, LENGTH), 3), torch.tensor([2]), Cond())[0].unflatten(0, GRID)  # [h, w, K]
    for (a, b), (c, d) in product(product(range(3), range(5)), repeat=2):
        same = (a % 2, b % 3 if b in (1, 4) else b) == (c % 2, d % 3 if d in (1, 4) else d)
        assert bool(torch.allclose(logits[a, b], logits[c, d], rtol=1e-9, atol=1e-9)) == same


@torch.no_grad()
def test_sinusoids_know_levels_in_between_and_a_table_does_not() -> None:
    x = random_x(1)
    model = make(NEW)
    low, middle, high = (model(x, torch.tensor([level], dtype=torch.float64), Cond()) for level in (2.0, 2.01, 3.0))
    assert 1e-9 < float((middle - low).abs().max()) < float((high - low).abs().max())
    torch.testing.assert_close(model(x, torch.tensor([2]), Cond()), low, rtol=1e-5, atol=1e-5)
    table = make(TINY)
    torch.testing.assert_close(
        table(x, torch.tensor([2.0]), Cond()), table(x, torch.tensor([2]), Cond()), rtol=0, atol=0
    )
    for level in (2.5, 0.0, STEPS + 1.0):
        with pytest.raises(ConfigError, match=rf"t = \[{level}\].*1\.\.{STEPS}"):
            table(x, torch.tensor([level]), Cond())


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_copy_says_nearly_the_same_in_float32(name: str) -> None:
    config, classes, text = CASES[name]
    torch.manual_seed(0)
    model = VQDiffusion(config, GRID, CODES, num_classes=classes, text=text).eval()
    x, t = random_x(), torch.tensor([3, 1])
    cond = cond_of(model)
    cond = replace(cond, text=None if cond.text is None else cond.text.float())
    for weight in (model.step_modulation.weight, model.head.weight):
        torch.nn.init.normal_(weight, std=0.2)
    rounded = model.to_bfloat16()
    logits, found = model(x, t, cond), rounded(x, t, cond)
    assert logits.dtype == found.dtype == rounded.head.weight.dtype == torch.float32
    assert rounded.layers[0].attention.out.weight.dtype == torch.bfloat16
    assert model.layers[0].attention.out.weight.dtype == torch.float32
    difference = float((found - logits).abs().max())
    assert 0 < difference < 0.05 * float(logits.abs().max())  # eight bits of a mantissa, through two layers


def test_activation_bytes_count_what_the_formula_says() -> None:
    config = replace(TINY, width=16, mlp_width=1000, activation="swiglu")
    model = VQDiffusion(config, GRID, CODES)
    assert model.state_bytes(3) == 3 * LENGTH * (2 * 16 * 4 + 3 * 1000 * 4)
    assert VQDiffusion(TINY, GRID, 500).state_bytes(2) == 2 * LENGTH * (2 * 16 * 4 + 3 * 500 * 4)


# the loss


class Scripted(VQDiffusion):
    """Instead of a network, any function of the noisy codes and the level that no two of them share."""

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.seen = x, t, cond
        code = torch.arange(self.num_codes, dtype=torch.float64)
        place = torch.arange(x.shape[1])[:, None]
        return torch.sin(
            1.3 * code + 0.7 * x[..., None] + place + 0.9 * t.double()[:, None, None] + 0.4 * x.sum(1)[:, None, None]
        )


TOY_CODES, TOY_STEPS = 3, 3


def toy(**changes: object) -> Scripted:
    config = replace(TINY, num_steps=TOY_STEPS, **{"auxiliary_weight": 0.25, **changes})  # type: ignore[arg-type]
    return Scripted(config, (1, 2), TOY_CODES).eval()


def transition(model: VQDiffusion, level: int) -> Tensor:
    """One step as a dense matrix [to, from], from the cumulative quantities (paper, equation 8)."""
    process, size = model.process, TOY_CODES + 1
    keep, mask = process.keep.tolist(), process.mask.tolist()
    a = keep[level] / keep[level - 1]
    c = 1 - (1 - mask[level]) / (1 - mask[level - 1])
    other = (1 - a - c) / TOY_CODES
    matrix = torch.full((size, size), other if other > 1e-12 else 0.0, dtype=torch.float64)
    matrix += a * torch.eye(size, dtype=torch.float64)
    matrix[-1] = c
    matrix[:, -1] = F.one_hot(torch.tensor(TOY_CODES), size)
    return matrix


def step_by_hand(model: Scripted, x0: Tensor, x_t: Tensor, level: int) -> tuple[float, float]:
    """KL of one step by dense matrices, and -log p(x_0 | x_t), both summed over the two codes."""
    one = transition(model, level)
    before = torch.eye(TOY_CODES + 1, dtype=torch.float64)
    for earlier in range(1, level):
        before = transition(model, earlier) @ before
    after = one @ before
    predicted = model(x_t[None], torch.tensor([level]), Cond())[0].softmax(-1)
    kl = auxiliary = 0.0
    for place in range(2):
        truth, noisy = int(x0[place]), int(x_t[place])
        posteriors = []
        for code in range(TOY_CODES):
            stays = F.one_hot(torch.tensor(noisy), TOY_CODES + 1).double()  # where x_0 cannot have been another code
            weight = one[noisy] * before[:, code]
            posteriors.append(weight / after[noisy, code] if after[noisy, code] > 0 else stays)
        q = posteriors[truth]
        p = sum(predicted[place, code] * posteriors[code] for code in range(TOY_CODES))
        kl += sum(float(a * (a / b).log()) for a, b in zip(q, p, strict=True) if a > 0)
        auxiliary -= float(predicted[place, truth].log())
    return kl, auxiliary


def bound_by_hand(model: Scripted, x0: Tensor) -> tuple[float, float]:
    """Mean over all noisy codes of each level, summed over the levels: the bound with its prior term, and the auxiliary term."""
    cumulative = torch.eye(TOY_CODES + 1, dtype=torch.float64)
    bound = auxiliary = 0.0
    for level in range(1, TOY_STEPS + 1):
        cumulative = transition(model, level) @ cumulative
        for noisy in product(range(TOY_CODES + 1), repeat=2):
            prob = math.prod(float(cumulative[noisy[place], int(x0[place])]) for place in range(2))
            if prob > 0:
                kl, nats = step_by_hand(model, x0, torch.tensor(noisy), level)
                factor = 2 - (level - 1) / TOY_STEPS if model.config.auxiliary_adaptive else 1.0
                bound += prob * kl
                auxiliary += prob * factor * model.config.auxiliary_weight * nats
    prior = model.process.log_prior()
    for place in range(2):
        q = cumulative[:, int(x0[place])]
        bound += sum(float(a * (a.log() - b)) for a, b in zip(q, prior, strict=True) if a > 0)
    return bound, auxiliary


@pytest.mark.parametrize("importance", [True, False], ids=["importance", "uniform"])
@pytest.mark.parametrize("schedule", ["paper", "linear"])
def test_loss_is_an_unbiased_estimate_of_the_whole_bound(schedule: str, importance: bool) -> None:
    """Against enumeration of every level and all noisy codes; four standard errors of 20,000 draws."""
    model, x0 = toy(schedule=schedule, importance_sampling=importance), torch.tensor([2, 0])
    if importance:  # as if some levels had been found to be harder
        for _ in range(20):
            model.step_sampler.update_(torch.tensor([1, 2, 3]), torch.tensor([1.0, 3.0, 1.5]))
        assert float(model.step_sampler.probs().max()) > 0.39
    bound, auxiliary = bound_by_hand(model, x0)
    found = model.loss(x0.expand(20_000, 2)[..., None], Cond(), rng=seeded(1))
    assert found.bound == "upper" and found.dims.tolist() == [2] * 20_000
    error = float(found.nats.std()) / math.sqrt(20_000)
    assert float(found.nats.double().mean()) == pytest.approx(bound, abs=4 * error)
    assert 0 < error < 0.05
    assert float(found.terms["bound"]) == pytest.approx(float(found.nats.double().mean()) / 2, rel=1e-5)
    assert float(found.terms["auxiliary"]) == pytest.approx(auxiliary / 2, rel=0.03)
    assert float(found.total) == pytest.approx(float(found.terms["bound"] + found.terms["auxiliary"]), rel=1e-9)


@pytest.mark.parametrize("adaptive", [True, False])
def test_one_image_costs_its_step_over_the_levels_probability(adaptive: bool) -> None:
    model = toy(importance_sampling=False, auxiliary_adaptive=adaptive)
    levels = set()
    for seed in range(12):
        x0 = torch.tensor([1, seed % 3])
        found = model.loss(x0[None, :, None], Cond(), rng=seeded(seed))
        (x_t, t, _), level = model.seen, int(model.seen[1])
        kl, nats = step_by_hand(model, x0, x_t[0], level)
        assert t.shape == (1,)
        assert float(found.nats) == pytest.approx(TOY_STEPS * kl + 2 * model.process.prior_nats(), rel=1e-5, abs=1e-6)
        factor = {1: 2, 2: 2 - 1 / 3, 3: 2 - 2 / 3}[level] if adaptive else 1
        assert float(found.terms["auxiliary"]) == pytest.approx(TOY_STEPS * factor * 0.25 * nats / 2, rel=1e-6)
        levels.add(level)
    assert levels == {1, 2, 3}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_continuous_loss_is_the_weighted_cross_entropy_of_masked_codes(schedule: str) -> None:
    model = toy(bound="continuous", step_embedding="sinusoidal", schedule=schedule)
    x0 = torch.tensor([[1, 2], [0, 2], [2, 2], [1, 0]])
    found = model.loss(x0[..., None], Cond(), rng=seeded(3))
    x_t, t, _ = model.seen
    times = (t / TOY_STEPS).tolist()
    assert sorted(math.ceil(4 * u) for u in times) == [1, 2, 3, 4]  # one in each quarter
    log_p = model(x_t, t, Cond()).log_softmax(-1)
    auxiliary = 0.0
    for image, u in enumerate(times):
        angle = math.pi / 2 * (1 - u)
        weight = 1 / u if schedule == "linear" else math.pi / 2 * math.tan(angle)
        costs = [-float(log_p[image, place, int(x0[image, place])]) for place in range(2)]
        masked = [cost for cost, symbol in zip(costs, x_t[image].tolist(), strict=True) if symbol == TOY_CODES]
        assert float(found.nats[image]) == pytest.approx(weight * sum(masked), rel=1e-5)
        auxiliary += TOY_STEPS * 0.25 * (2 - u) * sum(costs)
    assert bool((x_t == TOY_CODES).any()) and bool((x_t != TOY_CODES).any())
    assert float(found.terms["auxiliary"]) == pytest.approx(auxiliary / 8, rel=1e-6)


def test_continuous_loss_is_the_limit_of_many_levels() -> None:
    """A network that says the same at every level: the bound by enumeration over masks, as an integral over times."""

    class Constant(Scripted):
        def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return super().forward(x, torch.zeros_like(t), cond)

    config = replace(NEW, num_steps=TOY_STEPS, bound="continuous", schedule="linear")
    model, x0 = Constant(config, (1, 2), TOY_CODES).eval(), torch.tensor([2, 0])
    exact = 0.0  # of u^n (1 - u)^(2 - n) / u over 0..1: both masked 1/2, one masked 1/2 each
    for masks in ([0, 1], [0], [1]):
        x_t = x0.clone()
        x_t[masks] = TOY_CODES
        log_p = model(x_t[None], torch.tensor([1]), Cond())[0].log_softmax(-1)
        exact -= sum(float(log_p[place, int(x0[place])]) for place in masks) / 2
    found = model.loss(x0.expand(20_000, 2)[..., None], Cond(), rng=seeded(2)).nats.double()
    assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / math.sqrt(20_000))


@pytest.mark.parametrize("config", [TINY, replace(NEW, bound="continuous")], ids=["discrete", "continuous"])
def test_what_is_random_in_the_loss_comes_from_its_generator_alone(config: Config) -> None:
    model = make(config, CLASSES).train()
    x, cond = random_x(6, symbols=CODES)[..., None], cond_of(model, 6)
    before = torch.get_rng_state()
    first, second, third = (model.loss(x, cond, rng=seeded(seed)).total.item() for seed in (7, 7, 8))
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), before)


def test_conditions_are_hidden_in_training_only_and_as_often_as_asked() -> None:
    config = replace(TINY, num_steps=TOY_STEPS, drop_condition_prob=0.3)
    model = Scripted(config, (1, 2), TOY_CODES, num_classes=CLASSES)
    x, label = torch.zeros(4000, 2, 1, dtype=torch.int64), torch.zeros(4000, dtype=torch.int64)
    model.train().loss(x, Cond(label=label), rng=seeded())
    dropped = model.seen[2].dropped
    assert dropped is not None
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    own = torch.arange(4000) < 1000
    model.loss(x, Cond(label=label, dropped=own), rng=seeded())
    assert torch.equal(model.seen[2].dropped, dropped | own), "what is hidden already stays so"
    model.eval().loss(x, Cond(label=label), rng=seeded())
    assert model.seen[2].dropped is None
    model.loss(x, Cond(label=label, dropped=own), rng=seeded())
    assert torch.equal(model.seen[2].dropped, own)
    without = Scripted(config, (1, 2), TOY_CODES).train()
    without.loss(x, Cond(), rng=seeded())
    assert without.seen[2].dropped is None


def test_levels_are_weighed_by_what_training_has_seen_of_them() -> None:
    model = toy()
    x = torch.zeros(30, 2, 1, dtype=torch.int64)
    before = model.step_sampler.state()
    model.loss(x, Cond(), rng=seeded())
    assert all(torch.equal(part, before[name]) for name, part in model.step_sampler.state().items())
    model.train().loss(x, Cond(), rng=seeded())
    _, t, _ = model.seen
    assert model.step_sampler.state()["hits"].tolist() == t.bincount(minlength=TOY_STEPS + 1)[1:].tolist()


# training and drawing


@pytest.mark.parametrize("config", [TINY, replace(NEW, bound="continuous")], ids=["paper", "new"])
def test_four_images_are_learned_by_heart_and_drawn(config: Config) -> None:
    torch.manual_seed(0)
    config = replace(config, depth=1, num_steps=8, width=32, auxiliary_weight=0.1, drop_condition_prob=0.0)
    model = VQDiffusion(config, (2, 3), 5, num_classes=4)
    images, label = torch.randint(0, 5, (4, 6, 1), generator=seeded()), torch.arange(4)
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=0.01), seeded(1)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(images.repeat(4, 1, 1), Cond(label=label.repeat(4)), rng=rng).total.backward()
        optimizer.step()
    streams = [seeded(k) for k in range(4)]
    found = model.eval().sample(Cond(label=label), 4, options=SampleOptions(temperature=0.5), rng=streams)
    assert torch.equal(found, images)


# what is refused


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("paper", {"source": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, "source was given"),
        ("paper", {"known": torch.zeros(2, 8, 8, dtype=torch.bool)}, "known was given"),
        ("paper", {"codes": torch.zeros(2, 4, dtype=torch.int64)}, "codes was given"),
        ("paper", {"label": torch.tensor([0, 1])}, "label was given"),
        ("paper", {"text": torch.zeros(2, 3, 6)}, "text was given"),
        ("paper", {"text_tokens": torch.zeros(2, 3, dtype=torch.int64)}, "text was given"),
        ("paper", {"dropped": torch.tensor([True, False])}, "classes or texts, and this one has neither"),
        ("paper, class", {"label": None}, "label is missing.*4 classes"),
        ("paper, class", {"label": torch.tensor([0, 4])}, r"label = \[0, 4\].*0\.\.3"),
        ("paper, class", {"label": torch.tensor([-1, 0])}, r"label = \[-1, 0\].*0\.\.3"),
        ("paper, class", {"label": torch.tensor([1])}, r"label = \[1\].*each of 2 images"),
        ("paper, text", {"text": None, "text_known": None}, "text is missing"),
        ("paper, text", {"text": torch.zeros(3, 3, 6)}, "text has 3 entries for 2 images"),
        ("paper, text", {"text": torch.zeros(2, 3, 7)}, r"text is \[2, 3, 7\].*6 dimensions"),
        ("paper, text", {"text_known": torch.tensor([[True] * 3, [False] * 3])}, "text 1 has no known token"),
        ("bytes", {"text": torch.zeros(2, 3, 6)}, "text was given as states"),
    ],
)  # fmt: skip
def test_a_condition_that_the_model_was_not_trained_with_is_refused(
    name: str, changes: dict[str, Tensor | None], message: str
) -> None:
    model = case(name)
    with pytest.raises(ConfigError, match=message):
        model(random_x(), torch.tensor([1, 2]), replace(cond_of(model), **changes))


@pytest.mark.parametrize("name", ["paper, class", "paper, text"])
def test_guidance_needs_a_model_that_has_seen_images_without_their_condition(name: str) -> None:
    config, classes, text = CASES[name]
    model = make(replace(config, drop_condition_prob=0.0), classes, text)
    with pytest.raises(ConfigError, match=r"model\.drop_condition_prob = 0\.1"):
        model(random_x(), torch.tensor([1, 2]), replace(cond_of(model), dropped=torch.tensor([True, False])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 1}, "num_steps = 1 must be at least 2"),
        ({"width": 0}, "width = 0 must be at least 1"),
        ({"depth": 0}, "depth = 0"),
        ({"num_heads": 0}, "num_heads = 0"),
        ({"mlp_width": 0}, "mlp_width = 0"),
        ({"num_heads": 3}, "num_heads = 3 does not divide model.width = 16. Use 2"),
        ({"rotary": True, "num_heads": 8}, "multiple of 4 dimensions, each has 2"),
        ({"step_embedding": "sinusoidal", "width": 15, "num_heads": 1}, "even model.width, not 15"),
        ({"bound": "continuous", "schedule": "linear"}, "model.step_embedding = 'table' must be sinusoidal"),
        ({"bound": "continuous", "step_embedding": "sinusoidal"}, "model.schedule = 'paper' must be linear or cosine"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight = -1.0 must not be negative"),
        ({"dropout_prob": 1.0}, "dropout_prob = 1.0 must lie in 0..1"),
        ({"drop_condition_prob": 1.0}, "drop_condition_prob = 1.0 must lie in 0..1"),
    ],
)
def test_problems_name_the_field_and_its_value(changes: dict[str, object], message: str) -> None:
    assert TINY.problems() == [] == NEW.problems()
    found = replace(TINY, **changes).problems()  # type: ignore[arg-type]
    assert len(found) == 1 and message in found[0]


def test_a_task_is_refused() -> None:
    assert TINY.fit_problems(task=None, image_size=16) == []
    pooled = replace(TINY, pooled_text=True)
    assert pooled.fit_problems(task=None, image_size=16, has_text=True) == []
    assert (
        "model.pooled_text = true, but the recipe has no section text"
        in pooled.fit_problems(task=None, image_size=16)[0]
    )
    (found,) = TINY.fit_problems(task="inpaint", image_size=16)
    assert "task.name = 'inpaint'" in found and "restore" in found


# build


def tokenizer() -> CodeCodec:
    torch.manual_seed(0)
    config = TokenizerConfig(base_width=4, multipliers=(1, 1), res_blocks=1, attention_levels=(),
                             middle_attention=False, z_channels=4, norm_groups=2, vocab_size=CODES, dim=4)  # fmt: skip
    return CodeCodec(build_autoencoder(config), 16)


def test_build_takes_grid_and_codes_from_the_tokenizer() -> None:
    codec = tokenizer()
    found, model = build(TINY, image_size=16, num_classes=CLASSES, text=STATES, tokenizers={"tokenizer": codec})
    assert found is codec
    assert (model.grid, model.num_codes, model.num_classes) == (codec.grid, CODES, CLASSES)
    assert model.x_shape == codec.x_shape and model.process.num_codes == CODES
    assert model.text_input is not None and model.text_input.length == 5


def test_build_refuses_what_it_cannot_use() -> None:
    given = {"tokenizer": tokenizer()}
    with pytest.raises(ConfigError, match=r"model\.tokenizer is missing"):
        build(TINY, image_size=16, num_classes=0)
    with pytest.raises(ConfigError, match="takes no sources"):
        build(TINY, image_size=16, num_classes=0, source=SourceShape(3, 16, False), tokenizers=given)
    with pytest.raises(ConfigError, match=r"model\.pooled_text = true, but"):
        build(replace(TINY, pooled_text=True), image_size=16, num_classes=0, tokenizers=given)
