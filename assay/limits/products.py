"""Matrix products in every element type that a device may have a unit for, each proven right before it is timed."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from assay.device import Device
from assay.limits.timing import Timings, Work, take_samples
from assay.world import first_line

PROOF = 256  # side of the product that is compared with the exact one
PATIENCE = 0.1  # s; a shape is left out of the search if one product would take longer, and longer than it is given
ROOM = 4  # operands and result may fill this part of the free memory
# From three rough sizes on, units are busy; which one suits them best is for the search to find.
CPU_SIDES, ACCELERATOR_SIDES = (512, 1024, 1536, 2048, 3072), (2048, 4096, 8192, 12288, 16384)


class Unsupported(Exception):
    """This device has no such unit, or torch no kernel for it. The message is the reason, for readers."""


class Shape(NamedTuple):
    """An [m, k] × [k, n] product."""

    m: int
    n: int
    k: int

    @property
    def operations(self) -> int:
        """Multiplications and additions: 2·m·n·k."""
        return 2 * self.m * self.n * self.k

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


Bind = Callable[[torch.Tensor, torch.Tensor], Callable[[], torch.Tensor]]
"""Operands → the call that multiplies them, with all that is prepared once left outside of it."""


@dataclass(frozen=True)
class Kind:
    """An element type of products.

    error: bounds of the relative error ‖C − exact‖ / ‖exact‖ (Frobenius). Below the lower one the device did not
    compute in this type, above the upper one it computed wrongly.
    """

    name: str
    dtype: torch.dtype
    error: tuple[float, float]
    bind: "Bind"
    accelerators_only: str | None = None
    """Why it has no meaning on a CPU; None if it has one."""

    @property
    def unit(self) -> str:
        """FLOP/s, or OP/s for integers."""
        return "FLOP/s" if self.dtype.is_floating_point else "OP/s"


def _plain(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    # Without new memory for every result, as a well-written program does it.
    result = torch.mm(left, right)
    return lambda: torch.mm(left, right, out=result)


def _with_precision(name: str) -> Bind:
    """float32 products as torch.set_float32_matmul_precision(name) makes them, whatever was set before and after."""

    def bind(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
        multiply = _plain(left, right)

        def call() -> torch.Tensor:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision(name)
            try:
                return multiply()
            finally:
                torch.set_float32_matmul_precision(before)

        return call

    return bind


def _columns(right: torch.Tensor) -> torch.Tensor:
    """The right operand column by column: units for 8-bit types want, or are fastest with, its k elements in a row."""
    return right.t().contiguous().t()


def _scaled(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    one, columns = torch.ones((), device=left.device), _columns(right)

    def multiply(fast: bool) -> torch.Tensor:
        # Vendors print their peaks with fast accumulation; where it is not to be had, the exact one counts.
        return torch._scaled_mm(left, columns, one, one, out_dtype=torch.bfloat16, use_fast_accum=fast)

    try:
        multiply(fast=True)
    except RuntimeError:
        return partial(multiply, fast=False)
    return partial(multiply, fast=True)


def _whole(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    return partial(torch._int_mm, left, _columns(right))


_NO_TF32 = "TF32 is a mode of accelerators' matrix units; torch has none on a CPU"
_NO_FP8 = "torch has no FP8 product on a CPU but an emulation, element by element"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("float64", torch.float64, (0, 1e-12), _plain),
        Kind("float32", torch.float32, (0, 1e-5), _with_precision("highest")),
        # Operands rounded to 10 bits of fraction differ by 2e-4 or so; as exact as float32 means that it is float32.
        Kind("tf32", torch.float32, (2e-5, 5e-3), _with_precision("high"), _NO_TF32),
        Kind("bfloat16", torch.bfloat16, (0, 1e-2), _plain),
        Kind("float16", torch.float16, (0, 2e-3), _plain),
        Kind("float8_e4m3fn", torch.float8_e4m3fn, (0, 1e-2), _scaled, _NO_FP8),
        Kind("float8_e4m3fnuz", torch.float8_e4m3fnuz, (0, 1e-2), _scaled, _NO_FP8),
        Kind("int8", torch.int8, (0, 0), _whole),
        Kind("int16", torch.int16, (0, 0), _plain),
    )
}


def operands(kind: Kind, device: Device, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Random [m, k] and [k, n] on the device: −1 … 1, all of int8, or small integers whose sums int16 holds exactly."""

    def make(rows: int, columns: int) -> torch.Tensor:
        if kind.dtype.is_floating_point:
            return (torch.rand(rows, columns, device=device.torch_device) * 2 - 1).to(kind.dtype)
        # Small numbers would flip few bits: less power, higher clocks and a better figure than real data give.
        low, high = (-128, 128) if kind.dtype == torch.int8 else (-3, 4)
        return torch.randint(low, high, (rows, columns), dtype=torch.int32, device=device.torch_device).to(kind.dtype)

    return make(shape.m, shape.k), make(shape.k, shape.n)


def prove(kind: Kind, device: Device) -> float:
    """The relative error of a product against float64 on the host. Raises Unsupported, with the reason, if it is no such product."""
    if device.type == "cpu" and kind.accelerators_only:
        raise Unsupported(kind.accelerators_only)
    with refusals(device):
        left, right = operands(kind, device, Shape(PROOF, PROOF, PROOF))
        result = kind.bind(left, right)().cpu().double()
        exact = left.cpu().double() @ right.cpu().double()
    error = float((result - exact).norm() / exact.norm())
    lowest, highest = kind.error
    if not error <= highest:
        raise Unsupported(f"the product is wrong: relative error {error:.1g}, at most {highest:g} is expected")
    if error < lowest:
        raise Unsupported(f"it did not engage: with a relative error of {error:.1g} this was {kind.dtype}")
    return error


@contextlib.contextmanager
def refusals(device: Device) -> Iterator[None]:
    """What torch or a driver raises when it cannot do something (out of memory included) becomes Unsupported."""
    try:
        yield
    except (RuntimeError, NotImplementedError, MemoryError, TypeError, ValueError, AttributeError) as error:
        raise Unsupported(f"torch {torch.__version__} on {device.type}: {first_line(str(error))}") from None


def product(device: Device, kind: Kind, shape: Shape) -> Work:
    """Multiplying one pair of operands again and again."""
    return Work(kind.bind(*operands(kind, device, shape)), shape.operations)


def shapes_for(device: Device) -> list[Shape]:
    """What the search tries: cubes, and of the larger ones flat and deep products of the same work."""
    sides = CPU_SIDES if device.type == "cpu" else ACCELERATOR_SIDES
    cubes = [Shape(side, side, side) for side in sides]
    flat = [Shape(2 * side, 2 * side, side // 4) for side in sides[1:4]]
    return sorted([*cubes, *flat], key=lambda shape: shape.operations)


def search(device: Device, kind: Kind, shapes: Sequence[Shape], seconds: float) -> list[tuple[Shape, Timings]]:
    """Every shape for `seconds`, smallest first, as long as time and memory allow.

    Raises Unsupported if the device refuses the first of them.
    """
    tried: list[tuple[Shape, Timings]] = []
    for shape in shapes:
        if tried and not (_in_time(tried[-1], shape, seconds) and _in_memory(device, kind, shape)):
            continue
        try:
            with refusals(device):
                tried.append((shape, take_samples(device, seconds, product(device, kind, shape).call, fewest=2)))
        except Unsupported:
            if not tried:
                raise
            break  # larger ones will not fit either
    return tried


def fastest(tried: Sequence[tuple[Shape, Timings]]) -> tuple[Shape, float]:
    """The shape with the highest rate in its best sample, and that rate."""
    return max(((shape, shape.operations / timings.best_call) for shape, timings in tried), key=lambda item: item[1])


def _in_time(last: tuple[Shape, Timings], shape: Shape, seconds: float) -> bool:
    expected = last[1].best_call * shape.operations / last[0].operations
    return expected <= max(seconds, PATIENCE)


def _in_memory(device: Device, kind: Kind, shape: Shape) -> bool:
    free = device.memory().free
    needed = (shape.m * shape.k + shape.k * shape.n) * kind.dtype.itemsize + shape.m * shape.n * 8
    return free is None or needed <= free // ROOM
