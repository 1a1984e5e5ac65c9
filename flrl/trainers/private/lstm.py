"""LSTMs under `torch.func.vmap`, which has no rule for MKL-DNN's one operator and takes one sample after another."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.backends import mkldnn


@contextmanager
def plain_lstms(module: nn.Module) -> Iterator[None]:
    """Have a module's LSTMs made of simple operators inside the block; nothing changes where there are none."""
    lstms = [part for part in module.modules() if isinstance(part, nn.LSTM)]
    if not lstms:
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mkldnn.flags(enabled=False))
        for part in lstms:
            stack.callback(part.register_forward_pre_hook(_with_states).remove)
        yield


def _with_states(lstm: nn.Module, arguments: Any) -> Any:
    """Make the first states of the input, so that they have the dimension of samples: they are added to in place."""
    inputs = arguments[0]
    if len(arguments) > 1 or not isinstance(inputs, Tensor):
        return None
    assert isinstance(lstm, nn.LSTM)
    layers = lstm.num_layers * (2 if lstm.bidirectional else 1)
    batch = [inputs.shape[0 if lstm.batch_first else 1]] if inputs.ndim == 3 else []
    sizes = (lstm.proj_size or lstm.hidden_size, lstm.hidden_size)
    return inputs, tuple(inputs.new_zeros(layers, *batch, size) for size in sizes)
