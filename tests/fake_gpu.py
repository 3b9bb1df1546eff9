"""A GPU that the CPU plays, which notes each time that the CPU would wait for a real one.

A GPU works through a queue. The CPU only enqueues operations, and so runs ahead of it. It waits for
the queue to become empty when it reads a value from the GPU, or copies one there without
`non_blocking=True`.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Operations that hand a value to the CPU, if only the size of their result
READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
         aten.equal.default)
CTC = (aten._ctc_loss.Tensor, aten._ctc_loss_backward.Tensor)


class OnGpu(torch.Tensor):
    """A tensor on the fake GPU. Its numbers are in `values_on_cpu`.

    Its device is "meta", the device of tensors without numbers: PyTorch then reads none by itself.
    """

    is_cuda = True  # our code asks for this, and takes the path of a GPU

    @staticmethod
    def __new__(cls, values: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device="meta")

    def __init__(self, values: torch.Tensor):
        self.values_on_cpu = values

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), options=None):
        raise AssertionError(f"{operation} outside of FakeGpu")


class FakeGpu(TorchDispatchMode):
    """Runs the operations on its tensors on the CPU, and collects in `waits` what would wait."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, operation, types, args=(), options=None):
        options = dict(options or {})
        given = [x for x in tree_leaves((args, options)) if isinstance(x, torch.Tensor)]
        from_gpu = any(isinstance(x, OnGpu) for x in given)
        to_gpu = from_gpu
        if options.get("device") is not None:
            to_gpu = torch.device(options["device"]).type == "meta"
            options["device"] = "cpu"
        if self.would_wait(operation, args, options, from_gpu, to_gpu):
            self.waits.append(str(operation))
        result = operation(*tree_map(_unwrap, args), **tree_map(_unwrap, options))
        if not to_gpu:
            return result
        # An operation in place returns a tensor that was given.
        known = {id(x.values_on_cpu): x for x in given if isinstance(x, OnGpu)}

        def wrap(x):
            if not isinstance(x, torch.Tensor):
                return x
            return known[id(x)] if id(x) in known else OnGpu(x)

        return tree_map(wrap, result)

    @staticmethod
    def would_wait(operation, args: tuple, options: dict, from_gpu: bool, to_gpu: bool) -> bool:
        """Whether an operation makes the CPU wait for a real GPU."""
        if operation in READS:
            return from_gpu
        if operation in CTC:
            return True  # PyTorch copies the lengths to the GPU
        if operation is aten._to_copy.default:
            return from_gpu != to_gpu and not options.get("non_blocking")
        if operation is aten.copy_.default:
            other_device = isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu)
            return other_device and not (len(args) > 2 and args[2])
        if operation.overloadpacket in (aten.index, aten.index_put, aten._index_put_impl_):
            indices = [x for x in args[1] if x is not None]
            on_cpu = any(not isinstance(x, OnGpu) for x in indices)  # they are copied to the GPU
            return from_gpu and (on_cpu or any(x.dtype == torch.bool for x in indices))
        return False


def _unwrap(x):
    """The tensor on the CPU behind a tensor on the fake GPU; anything else as it is."""
    return x.values_on_cpu if isinstance(x, OnGpu) else x
