"""Counted work: exact bytes of single operations, straight lines that hold, and the analytic bounds around it."""

import resource
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import MODELS, ModelShape, parameters_of
from assay.record import Header, read_rank_file
from assay.recorder import Recorder
from assay.scoring.result import CaseResult
from assay.scoring.roofline import rooflines
from assay.scoring.samples import scalar
from assay.training import counting
from assay.training.counting import (
    ByteCounter,
    Count,
    count_passes,
    count_update,
    count_work,
    record_work,
    update_shards,
)
from assay.training.flops import flops_per_token, least_work
from assay.world import World
from tests.conftest import rank_files

SHAPES = [
    ModelShape("untied", "llama", 320, 48, 3, 6, 6, 128),
    ModelShape("tied", "llama", 320, 48, 3, 6, 6, 128, tied=True),
    ModelShape("grouped", "llama", 320, 48, 4, 6, 2, 128),
    ModelShape("biased", "internlm", 320, 48, 1, 6, 6, 128),
    ModelShape("gpt", "gpt", 320, 48, 3, 6, 6, 192, tied=True, positions=32),
]
SMALL = [SHAPES[0], *(shape for name, shape in MODELS.items() if name.endswith("-tiny"))]
HEADER = Header(0, 1, 0, 1, "host", 1, "clock", "cpu", "CPU", "gloo", "workloads/pretrain", 0.0, 0.0)
counted = cache(count_work)


def options(**given: object) -> PretrainOptions:
    return validate(PretrainOptions, {"data": "dummy", "seq_len": 24, **given})


def test_every_operation_reads_its_inputs_and_writes_its_outputs_once() -> None:
    left, right = (torch.empty(shape, device="meta") for shape in ((4, 8), (8, 16)))
    with ByteCounter() as moved:
        left @ right
    assert moved.bytes == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    with ByteCounter() as moved:
        left.add_(1)
    assert moved.bytes == 4 * 2 * 32
    with ByteCounter() as moved:
        torch._foreach_mul_([left, right], 2.0)
    assert moved.bytes == 4 * 2 * (32 + 128), "what an operation changes without returning it is written too"
    with ByteCounter() as moved:
        left * left
    assert moved.bytes == 4 * 2 * 32, "one input given twice is read once"


def test_what_moves_nothing_counts_nothing() -> None:
    tensor = torch.empty(4, 8, device="meta")
    with ByteCounter() as moved:
        tensor.t().view(2, 4, 4)[0].detach().unsqueeze(1).expand(4, 3, 4)
        torch.empty_like(tensor)
        torch.ones(5) + torch.ones(5)  # real tensors, such as an optimizer's step count, belong to no device's traffic
    assert moved.bytes == 0
    with ByteCounter() as moved:
        tensor[:, :1].expand(4, 64).clone()
    assert moved.bytes == 4 * (4 + 4 * 64), "an expanded dimension lies in memory once"


def test_a_look_up_reads_its_rows_only() -> None:
    table = nn.Embedding(1000, 16, device="meta")
    with ByteCounter() as moved, torch.no_grad():
        table(torch.empty(3, dtype=torch.long, device="meta"))
    assert moved.bytes == 3 * 8 + 2 * 3 * 16 * 4


@pytest.mark.parametrize(
    ("shape", "micro_batch", "passes", "precision"),
    [(SHAPES[0], 5, 1, "fp32"), (SHAPES[1], 2, 3, "bf16"), (SHAPES[2], 2, 3, "tf32"), (SHAPES[3], 3, 1, "fp16"), (SHAPES[4], 3, 2, "fp32")],
    ids=[shape.name for shape in SHAPES],
)  # fmt: skip
def test_the_lines_meet_a_count_of_the_whole_model(
    shape: ModelShape, micro_batch: int, passes: int, precision: str
) -> None:
    chosen = options(precision=precision)
    work, whole = counted(shape, chosen, passes), count_passes(shape, chosen, micro_batch, passes)
    assert work.flops(micro_batch * passes) == whole.flops
    assert work.bytes(micro_batch * passes) == whole.bytes + count_update(shape, chosen)


def test_a_micro_batch_of_one_moves_hardly_less_than_the_line_says() -> None:
    chosen = options()
    whole = count_passes(SHAPES[0], chosen, 1).bytes + count_update(SHAPES[0], chosen)
    assert 0.98 * counted(SHAPES[0], chosen, 1).bytes(1) <= whole <= counted(SHAPES[0], chosen, 1).bytes(1)


@pytest.mark.parametrize(
    ("shape", "precision", "element"),
    [*((shape, "fp32", 4) for shape in SMALL), (SHAPES[0], "bf16", 2)],
    ids=lambda value: value.name if isinstance(value, ModelShape) else str(value),
)
def test_counted_and_analytic_flops_agree_and_the_bytes_are_bounds(
    shape: ModelShape, precision: str, element: int
) -> None:
    chosen = options(precision=precision)
    most = counted(shape, chosen, 1)
    least = least_work(shape, parameters_of(shape, chosen.seq_len), 24, element)
    assert most.flops_per_sample == least.flops_per_sample
    assert most.bytes_fixed > least.bytes_fixed
    assert most.bytes_per_sample > least.bytes_per_sample


def test_flops_are_six_times_parameters_times_tokens_where_attention_is_small() -> None:
    chosen = options(seq_len=16)
    one_layer = ModelShape("llama-7b, one layer", "llama", 32000, 4096, 1, 32, 32, 11008)
    matmul = parameters_of(one_layer) - one_layer.vocab * one_layer.hidden
    assert count_passes(one_layer, chosen, 2).flops == pytest.approx(6 * matmul * 2 * 16, rel=0.002)


def test_least_work_by_hand() -> None:
    shape = ModelShape("tiny", "llama", 10, 8, 2, 4, 2, 20)  # Q = 2
    work = least_work(shape, parameters=1000, seq_len=3, element=2, passes=2, shards=4)
    assert work.bytes_fixed == 2 * 2 * 2 * (1000 - 80) + 4 * (3 * 1000 + 8 * 1000 // 4)
    assert work.bytes_per_sample == 2 * 2 * 3 * (2 * (4 * 8 + (2 * 4 + 2 * 2) * 2 + 2 * 20) + 2 * 8)
    assert work.flops_per_sample == 3 * flops_per_token(shape, 1000, 3)


def test_the_update_reads_and_writes_at_least_what_adamw_must() -> None:
    chosen = options()
    needed = 4 * parameters_of(SHAPES[0], 24)
    counted = count_update(SHAPES[0], chosen)
    assert 8 * needed < counted < 40 * needed, "unfused, but every parameter a bounded number of times"


def test_a_large_model_is_counted_without_its_memory_and_without_a_random_number() -> None:
    chosen = options(seq_len=4096, precision="bf16")
    state, before = torch.random.get_rng_state(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = count_work(MODELS["llama-7b"], chosen)
    assert work.flops_per_sample == pytest.approx(
        4096 * flops_per_token(MODELS["llama-7b"], 6_738_415_616, 4096), rel=0.001
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10, "KiB; its weights alone are 13 GB"
    assert torch.equal(torch.random.get_rng_state(), state), "training must not begin with other random numbers"


def test_counts_on_no_straight_line_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def curved(shape: ModelShape, chosen: PretrainOptions, micro_batch: int, passes: int = 1) -> Count:
        return Count(micro_batch, shape.layers * micro_batch**2)

    monkeypatch.setattr(counting, "count_passes", curved)
    with pytest.raises(ValueError, match=r"3 layers at micro batch 4 count 4 FLOP and 48 B where straight lines .* 42"):
        count_work(SHAPES[0], options())


def test_what_cannot_be_counted_is_null_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(shape: ModelShape, chosen: PretrainOptions, micro_batch: int, passes: int = 1) -> Count:
        raise NotImplementedError("vendor::attention has no meta kernel\nand a long story")

    monkeypatch.setattr(counting, "count_passes", fails)
    recorder = Recorder(tmp_path / "rank-00000.jsonl", HEADER)
    record_work(options(), World(0, 1, 0, 1, "gloo", ("host",), True), recorder, {"dtype": "float32"})
    recorder.close()
    files = [read_rank_file(tmp_path / "rank-00000.jsonl")]
    for metric in ("step_flops_counted", "step_bytes_counted"):
        value, reason = scalar(files, metric)
        assert value is None
        assert reason == "not counted: NotImplementedError: vendor::attention has no meta kernel and a long story"
    assert scalar(files, "step_flops_analytic")[0]


def test_mixed_precision_moves_fewer_bytes_for_activations_and_more_for_weights() -> None:
    whole, mixed = (counted(SHAPES[0], options(precision=precision), 1) for precision in ("fp32", "bf16"))
    assert mixed.flops_per_sample == whole.flops_per_sample
    assert mixed.bytes_per_sample < whole.bytes_per_sample
    assert mixed.bytes_fixed > whole.bytes_fixed, "float32 weights are cast before they are used"


@pytest.mark.parametrize(
    ("given", "shards"),
    [
        ({"engine": "ddp"}, 1),
        ({"engine": "accelerate"}, 1),
        ({"engine": "fsdp"}, 8),
        ({"engine": "fsdp", "shard_ranks": 2}, 2),
        ({"engine": "zero1"}, 8),
        ({"engine": "zero3"}, 8),
    ],
    ids=str,
)
def test_an_update_is_dealt_over_the_ranks_of_one_copy(given: dict[str, object], shards: int) -> None:
    assert update_shards(options(**given), 8) == shards


def test_an_update_on_the_host_is_not_counted_as_the_devices(tmp_path: Path) -> None:
    chosen = options(engine="zero2", offload=True)
    recorder = Recorder(tmp_path / "rank-00000.jsonl", HEADER)
    record_work(chosen, World(0, 1, 0, 1, "gloo", ("host",), True), recorder, {"dtype": "float32"})
    recorder.close()
    files = [read_rank_file(tmp_path / "rank-00000.jsonl")]
    for metric in ("step_flops_counted", "step_bytes_counted", "step_flops_analytic", "step_bytes_analytic"):
        value, reason = scalar(files, metric)
        assert value is None
        assert reason is not None
        assert "--offload" in reason


def test_the_first_rank_of_a_sharded_model_records_its_share_of_the_update(tmp_path: Path) -> None:
    chosen, shape = options(engine="fsdp", global_batch=8, micro_batch=2, seq_len=16), MODELS["llama-tiny"]
    recorder = Recorder(tmp_path / "rank-00000.jsonl", replace(HEADER, world=2))
    record_work(chosen, World(0, 2, 0, 2, "gloo", ("host", "host"), True), recorder, {"dtype": "float32"})
    recorder.close()
    files = [read_rank_file(tmp_path / "rank-00000.jsonl")]
    whole, update = counted(shape, chosen, 2), count_update(shape, chosen)
    most = replace(whole, bytes_fixed=whole.bytes_fixed - update + -(-update // 2))
    least = least_work(shape, parameters_of(shape, chosen.seq_len), 16, 4, passes=2, shards=2)
    for kind, work in (("counted", most), ("analytic", least)):
        assert scalar(files, f"step_flops_{kind}") == (work.flops(4), None)
        assert scalar(files, f"step_bytes_{kind}") == (work.bytes(4), None)
    (roof,) = rooflines([(CaseResult("train", "workloads/pretrain", 2, {}, None, 1), files)], [])
    points = [(point.kind, point.work, point.micro_batch, point.passes) for point in roof.points]
    assert points == [("counted", most, 2, 2), ("analytic", least, 2, 2)]


def test_pretraining_records_the_work_of_its_step(tiny_run: Path) -> None:
    (attempt,) = (tiny_run / "cases" / "train").glob("attempt-*")
    files = rank_files(attempt)
    for metric in ("step_flops_counted", "step_flops_analytic", "step_bytes_counted", "step_bytes_analytic"):
        (block,) = [block for file in files for block in file.blocks if block.metric == metric]
        assert block.samples > 0
        assert (block.tags["micro_batch"], block.tags["passes"]) == (2, 1)
        first = next(block for block in files[0].blocks if block.metric == "step_time")
        assert block.t_last < first.t_first - float(first.samples[0]), "outside of every timed step"
