"""Examples, small models with adapters, and their losses computed one by one with transformers and PEFT."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

import gguf_files
from znatok.fast.loss import row_loss
from znatok.model.adapters import TARGETS
from znatok.model.score import head_weight
from znatok.tokens.packing import pack_batch

# PEFT 0.21 reads a property that transformers 5.23 has renamed; goes with the filter in znatok.model.adapters
QUIET = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"


class Row(NamedTuple):
    """Token ids, and where the answer starts."""

    ids: tuple[int, ...]
    answer_start: int


def rows(seed=0, count=5, shared=6, vocabulary=320):
    """Return examples that begin alike: of several lengths, one with a single answer token, one twice."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return tuple(torch.randint(3, vocabulary, (length,), generator=generator).tolist())

    common = draw(shared)
    made = [Row(common + draw(4 + 3 * n), shared + 2 + n) for n in range(count - 2)]
    alone = Row(common + draw(3), shared + 2)
    return [*made, alone, made[0]]


def base(architecture="qwen2", seed=1, **changes):
    """Return a frozen random base in float32."""
    return gguf_files.model(architecture, seed=seed, **changes).requires_grad_(False)


def adapted(model, *, dropout=0.0, spread=0.1, ranks=None):
    """Put adapters on all projections of a base, their B matrices away from zero unless ``spread`` is 0."""
    config = LoraConfig(
        r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(TARGETS), rank_pattern=ranks or {}, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = get_peft_model(model, config).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=spread)
    return model


def learned(model):
    """Return the adapter's parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def losses_alone(model, examples):
    """Return the summed loss of each example, computed by transformers' own layers and torch's own cross-entropy."""
    found = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.ids])).logits[0].float()
        answer = torch.tensor(example.ids[example.answer_start :])
        found.append(F.cross_entropy(logits[example.answer_start - 1 : -1], answer, reduction="sum"))
    return found


def losses_packed(backbone, model, examples, limit=1000, *, share=True):
    """Return the summed loss of each pack."""
    packs = pack_batch(examples, limit, share=share)
    return [row_loss(backbone.hidden(packed), head_weight(model), packed.targets_N) for packed in packs]


def slopes(model, losses):
    """Return the sum of losses and the gradients of the adapter by name."""
    total = sum(losses)
    parameters = learned(model)
    return total.item(), dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))


def distance(one, other):
    """Return the length of the difference as a share of ``other``'s length."""
    return float((one - other).norm() / other.norm())


def flat(gradients):
    """Return all gradients as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])
