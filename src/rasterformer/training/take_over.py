"""Starting from the weights of a trained model (`--init`): what has the same name and shape, and of codes what means the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rasterformer.checkpoint import read_model
from rasterformer.errors import ConfigError
from rasterformer.loading import stored_tokenizers
from rasterformer.system import USED_CODES
from rasterformer.tokenizer import Tokenizer
from rasterformer.training.codes import CodesLearner
from rasterformer.training.learner import Learner

OF_CODES = (
    "token_embedding.weight",
    "head.weight",
    "head.bias",
)  # a row for each code; the first may have more after them


def take_over(learner: Learner, init: Path, say: Callable[[str], None]) -> None:
    """Copies every weight of a trained model that has the same name and shape, and says which were left.

    Of models over codes, rows that belong to codes are copied by the tokenizer's numbers, for the models may number different
    codes; with another tokenizer, whose codes mean something else, they stay as they are.

    Raises:
        ConfigError: no weight has the name and shape of one of the learner's model.
        CheckpointError: `init` holds no model, or a file is damaged.
    """
    stored, model = read_model(init), learner.networks["model"]
    source, own = dict(stored.tensors["model"]), model.state_dict()
    if isinstance(learner, CodesLearner):
        tokenizer, used = stored_tokenizers(init).get("tokenizer"), stored.tensors.get(USED_CODES, {}).get("used")
        if tokenizer is not None:
            source = _by_code(learner, source, tokenizer, used, lambda text: say(f"--init {init}: {text}"))
    fitting = {name: weight for name, weight in source.items() if name in own and own[name].shape == weight.shape}
    if not fitting:
        raise ConfigError(
            f"--init {init}: no weight of it has the name and shape of one in this recipe. Use its own recipe."
        )
    model.load_state_dict({**own, **fitting})
    fresh, left = [n for n in own if n not in fitting], [n for n in stored.tensors["model"] if n not in fitting]
    say(f"--init {init}: {len(fitting)} of {len(own)} weights taken over")
    if fresh:
        say(f"  starting fresh: {', '.join(fresh)}")
    if left:
        say(f"  not used: {', '.join(left)}")


def _by_code(
    learner: CodesLearner,
    source: dict[str, Tensor],
    tokenizer: Tokenizer,
    used: Tensor | None,
    say: Callable[[str], None],
) -> dict[str, Tensor]:
    """The source's weights, those of codes by the learner's numbers; without them where codes mean something else.

    Args:
        learner: its model and codec are those to take over into.
        source: weights, by name.
        tokenizer: of the source.
        used: int64 [K'], which of its codes the source numbers. None: all.
        say: where sentences for people go.
    """
    rest = {name: weight for name, weight in source.items() if name not in OF_CODES}
    if tokenizer.fingerprint != learner.system.tokenizers["tokenizer"].fingerprint:
        say("its tokenizer is another one, whose codes mean something else: their embeddings are not taken over")
        return rest
    whole, now = torch.arange(tokenizer.vocab_size), learner.codec.used
    theirs, ours = whole if used is None else used, whole if now is None else now.used
    if torch.equal(theirs, ours):
        return source
    known = int(torch.isin(ours, theirs).sum())
    say(
        f"it knows {known:,} of these {len(ours):,} codes, whose embeddings are taken over; those of the other "
        f"{len(ours) - known:,} start fresh"
    )
    own = learner.networks["model"].state_dict()
    pairs = {name: (own[name], source[name]) for name in OF_CODES if name in own and name in source}
    return rest | {
        name: rows_of_codes(mine, ours, other, theirs)
        for name, (mine, other) in pairs.items()
        if mine.shape[1:] == other.shape[1:] and len(mine) - len(ours) == len(other) - len(theirs) >= 0
    }


def rows_of_codes(own: Tensor, ours: Tensor, source: Tensor, theirs: Tensor) -> Tensor:
    """Returns a weight whose rows of codes that both models number are the source's, as are those after the codes.

    Args:
        own: [K + n, ...], a row for each code and n more, such as that of the mask.
        ours: int64 [K], the tokenizer's numbers of these codes, rising.
        source: [K' + n, ...], of the other model.
        theirs: int64 [K'], of its codes.
    """
    taken, known = own.detach().cpu().clone(), torch.isin(ours, theirs)
    taken[: len(ours)][known] = source[torch.searchsorted(theirs, ours[known])].to(taken.dtype)
    taken[len(ours) :] = source[len(theirs) :]
    return taken
