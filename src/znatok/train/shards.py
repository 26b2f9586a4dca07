"""A base too large for the memory of one GPU: its layers are split over a team, each whole only while it computes.

This is PyTorch's FSDP2 (``fully_shard``; Zhao et al. 2023, arXiv:2304.11277) on the frozen weights of the layers alone.
The adapters stay whole in every process, and their gradients are summed as those of any team are; embedding, head and
last norm are read outside of layers and stay whole as well.
"""

from typing import Any

from znatok.errors import ModelError
from znatok.model.machine import device
from znatok.train.team import Team


def shard(model: Any, team: Team) -> None:
    """Split the frozen weights of each decoder layer over a team, in place; the rest goes to the device as it is.

    Args:
        model: PEFT's wrapper around a causal language model, still in main memory.
        team: two processes or more.

    Raises:
        ModelError: the model keeps its layers elsewhere than transformers' decoders do.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder = model.get_base_model().model
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ModelError("--shard_base: this model has no list of layers that could be split; leave it out")
    mesh = init_device_mesh(device().type, (team.size,))
    split = {parameter for parameter in layers.parameters() if not parameter.requires_grad}
    whole = {parameter for parameter in model.parameters() if parameter not in split}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(decoder, mesh=mesh, ignored_params=whole)  # for layers to share buffers and streams
    model.to(device())
