"""Graphs of recorded steps: remove needless operations, add SGD steps, and make them functions."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_ALIASES = (_aten.alias.default, _aten.detach.default)
_CONSTANTS = (_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.full.default)


def simplify(graph_module: fx.GraphModule) -> None:
    """Remove operations that a replay does not need: aliases, double transpositions, constants, unused results."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ALIASES:
            node.replace_all_uses_with(node.args[0])
        elif node.target is _aten.t.default and _is_t(node.args[0]):
            node.replace_all_uses_with(node.args[0].args[0])
        elif node.target in _CONSTANTS:
            _hoist(graph_module, node)
    graph.eliminate_dead_code()
    graph_module.recompile()


def gives_arguments(graph_module: fx.GraphModule) -> bool:
    """Whether one of a graph's results is an argument, or a view of one."""
    output = next(iter(reversed(graph_module.graph.nodes)))
    return any(root(result).op == "placeholder" for result in output.args[0])


def own_gradients(graph_module: fx.GraphModule, parameters: Sequence[int], *, layout: bool) -> None:
    """Give each parameter its own gradient tensor that may be changed in place, as autograd's accumulation does.

    Args:
        graph_module: returns, after other values, the gradients of some parameters.
        parameters: indices of those parameters among its arguments.
        layout: also give gradients the strides of their parameters, on which the bits of sums over them depend.
    """
    graph = graph_module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(iter(reversed(graph.nodes)))
    results = list(output.args[0])
    owned: set[fx.Node] = set()
    for place, index in enumerate(parameters, len(results) - len(parameters)):
        node, parameter = results[place], placeholders[index].meta["val"]
        value, owner = node.meta.get("val"), root(node)
        if value is not None and owner.op == "call_function" and owner not in owned:
            strides = zip(value.shape, value.stride(), parameter.stride(), strict=True)
            if not any(size > 1 and (a == 0 or (layout and a != b)) for size, a, b in strides):
                owned.add(owner)
                continue
        last = parameter.ndim == 4 and parameter.stride(1) == 1 and not parameter.is_contiguous()
        like: dict[str, Any] = {"memory_format": torch.channels_last if last else torch.contiguous_format}
        with graph.inserting_before(output):
            results[place] = graph.call_function(_aten.clone.default, (node,), like)
        results[place].meta["val"] = parameter
    output.args = (tuple(results),)
    graph_module.recompile()


def root(node: fx.Node) -> fx.Node:
    """The tensor that a tensor is a view of; itself if it is no view."""
    while node.op == "call_function" and _gives_views(node):
        node = node.all_input_nodes[0]
    return node


def random_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph that draw random numbers."""
    called = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    seeded = [node for node in called if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())]
    return [node for node in seeded if not _drops_nothing(node)]


def _drops_nothing(node: fx.Node) -> bool:
    """Whether an operator has a dropout probability of zero, as attention may have."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return "dropout_p" in names and given.get("dropout_p", 0.0) == 0.0


def _is_t(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is _aten.t.default


def _hoist(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Create a small constant once instead of in every replay, unless something writes into it."""
    value = node.meta.get("val")
    if value is None or value.numel() > 1024 or any(_may_write(user) for user in node.users):
        return
    same: dict[Any, Any] = {_aten.ones_like.default: 1, _aten.zeros_like.default: 0}
    fill: Any = same[node.target] if node.target in same else node.args[1]
    constant = torch.full(value.shape, fill, dtype=value.dtype, device=value.device)
    with graph_module.graph.inserting_before(node):
        node.replace_all_uses_with(_constant(graph_module, f"_constant_{node.name}", constant))


def _constant(graph_module: fx.GraphModule, name: str, value: Tensor) -> fx.Node:
    graph_module.register_buffer(name, value)
    return graph_module.graph.get_attr(name)


def changes(node: fx.Node) -> bool:
    """Whether an operator changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _may_write(node: fx.Node) -> bool:
    """Whether an operator may change its arguments, itself or through a view of them that it returns."""
    return _gives_views(node) or changes(node)


def _gives_views(node: fx.Node) -> bool:
    """Whether an operator's result may share memory with its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def with_sgd(recorded: fx.GraphModule, stepped: Sequence[int], *, fuse: bool = False) -> fx.GraphModule:
    """The graph with plain SGD steps: a further argument is minus the learning rate, gradients are not returned.

    Each step is the addition of `torch.optim.SGD`, with the same bits. It comes as soon as nothing reads the parameter
    any more, while its gradient is still in the cache.

    Args:
        recorded: returns, after other values, the gradients of some parameters.
        stepped: indices of those parameters among its arguments.
        fuse: add matrix products and sums of rows to parameters as they are computed, with other bits.
    """
    graph_module = fx.GraphModule(recorded, copy.deepcopy(recorded.graph))
    graph = graph_module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(iter(reversed(graph.nodes)))
    kept = len(output.args[0]) - len(stepped)
    values, gradients = output.args[0][:kept], output.args[0][kept:]
    with graph.inserting_after(placeholders[-1]):
        rate = graph.placeholder("minus_learning_rate")
    changed = {placeholders[place] for place in stepped}
    order = {node: place for place, node in enumerate(graph.nodes)}
    output.args = (tuple(values),)
    for parameter, gradient in zip((placeholders[place] for place in stepped), gradients, strict=True):
        last = max([gradient, *gradient.users, *readers(parameter)], key=lambda node: order.get(node, 0))
        # Not `inserting_after`, which would put the second node before the first.
        with graph.inserting_before(output if last is output else last.next):
            # A product that is computed later than recorded must not read parameters that have been stepped meanwhile.
            rows = _summed_rows(gradient)
            read = gradient.all_input_nodes if rows is None else [rows]
            precise = gradient.meta["val"].dtype.itemsize >= 4  # below float32, one rounding instead of two matters
            alone = precise and not gradient.users and not any(root(node) in changed for node in read)
            if fuse and alone and gradient.target is _aten.mm.default:
                graph.call_function(_aten.addmm_.default, (parameter, *gradient.args), {"alpha": rate})
            elif fuse and alone and rows is not None:
                seen = rows.meta["val"]
                ones = torch.ones(len(seen), dtype=seen.dtype, device=seen.device)
                weights = _constant(graph_module, f"_ones_{gradient.name}", ones)
                columns = graph.call_function(_aten.t.default, (rows,))
                graph.call_function(_aten.addmv_.default, (parameter, columns, weights), {"alpha": rate})
            else:
                graph.call_function(_aten.add_.Tensor, (parameter, gradient), {"alpha": rate})
    graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def _summed_rows(gradient: fx.Node) -> fx.Node | None:
    """The matrix of which a gradient is the sum of rows; None if it is no such sum."""
    if gradient.meta["val"].ndim != 1:
        return None
    node = gradient.args[0] if gradient.target is _aten.view.default else gradient
    if not isinstance(node, fx.Node) or node.target is not _aten.sum.dim_IntList or node.kwargs or node.args[1] != [0]:
        return None
    rows = node.args[0]
    assert isinstance(rows, fx.Node)
    return rows if rows.meta["val"].ndim == 2 else None


def readers(node: fx.Node) -> list[fx.Node]:
    """The nodes that read a tensor, directly or through views of it."""
    found: list[fx.Node] = []
    for user in node.users:
        found.append(user)
        if _gives_views(user):
            found.extend(readers(user))
    return found


def runnable(graph_module: fx.GraphModule) -> Callable[..., Any]:
    """A function with a graph's operations; operators are looked up beforehand, which saves a fifth of a small step."""
    graph = graph_module.graph
    bound: dict[str, Any] = {}
    last_use = {argument: node for node in graph.nodes for argument in node.all_input_nodes}
    lines, names = [], []

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, list | tuple):
            inner = ", ".join(map(text, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)" if value else "()"
        bound[name := f"_{len(bound)}"] = value
        return name

    for node in graph.nodes:
        if node.op == "placeholder":
            names.append(node.name)
        elif node.op == "get_attr":
            lines.append(f"{node.name} = {text(getattr(graph_module, node.target))}")
        elif node.op == "call_function":
            options = [f"{name}={text(value)}" for name, value in node.kwargs.items()]
            call = ", ".join([*map(text, node.args), *options])
            lines.append(f"{node.name} = {text(_quick(node.target))}({call})")
            if not node.users:
                lines.append(f"del {node.name}")
        else:
            lines.append(f"return {text(node.args[0])}")
        # Tensors that are not needed any more are freed, as in the module itself.
        done = [argument.name for argument in node.all_input_nodes if last_use[argument] is node]
        if done and node.op == "call_function":
            lines.append(f"del {', '.join(done)}")
    source = f"def replay({', '.join(names)}):\n    " + "\n    ".join(lines)
    exec(compile(source, "<recorded step>", "exec"), bound)
    return bound["replay"]  # type: ignore[no-any-return]


def _quick(target: Any) -> Any:
    """The fastest way to call an operator: PyTorch's own binding reads arguments faster than the general one."""
    return _BINDINGS.get(target) or getattr(target, "_op", target)


_BINDINGS: dict[Any, Callable[..., Any]] = {
    _aten.view.default: Tensor.view,
    _aten.t.default: Tensor.t,
    _aten.transpose.int: Tensor.transpose,
    _aten.permute.default: Tensor.permute,
    _aten.expand.default: Tensor.expand,
    _aten.unsqueeze.default: Tensor.unsqueeze,
    _aten.mm.default: torch.mm,
    _aten.bmm.default: torch.bmm,
    _aten.addmm.default: torch.addmm,
    _aten.addmm_.default: Tensor.addmm_,
    _aten.addmv_.default: Tensor.addmv_,
    _aten.baddbmm.default: torch.baddbmm,
    _aten.relu.default: torch.relu,
    _aten.tanh.default: torch.tanh,
    _aten.sigmoid.default: torch.sigmoid,
    _aten.add.Tensor: torch.add,
    _aten.add_.Tensor: Tensor.add_,
    _aten.mul.Tensor: torch.mul,
    _aten.sum.dim_IntList: torch.sum,
    _aten._log_softmax.default: torch._log_softmax,
    _aten._log_softmax_backward_data.default: torch._log_softmax_backward_data,
}
