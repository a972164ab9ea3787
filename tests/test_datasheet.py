"""The table of datasheets: right figures, right product for a driver's name, and no product rather than a wrong one."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.scoring.datasheet import PEAK_UNITS, Datasheet, datasheets, find_datasheet, load_datasheets, peak

# As torch, NVML and the other vendors' tools report them.
REPORTED = {
    "Tesla V100-SXM2-16GB": "NVIDIA V100 SXM2 16GB",
    "Tesla V100-SXM2-32GB": "NVIDIA V100 SXM2 32GB",
    "Tesla T4": "NVIDIA T4",
    "NVIDIA A10": "NVIDIA A10",
    "NVIDIA A30": "NVIDIA A30",
    "A100-PCIE-40GB": "NVIDIA A100 40GB PCIe",
    "NVIDIA A100-PCIE-40GB": "NVIDIA A100 40GB PCIe",
    "A100-SXM4-40GB": "NVIDIA A100 40GB SXM",
    "NVIDIA A100-SXM4-40GB": "NVIDIA A100 40GB SXM",
    "NVIDIA A100 80GB PCIe": "NVIDIA A100 80GB PCIe",
    "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80GB SXM",
    "NVIDIA A800 80GB PCIe": "NVIDIA A800 80GB PCIe",
    "NVIDIA A800-SXM4-80GB": "NVIDIA A800 80GB SXM",
    "NVIDIA L4": "NVIDIA L4",
    "NVIDIA L40S": "NVIDIA L40S",
    "NVIDIA GeForce RTX 3090": "NVIDIA GeForce RTX 3090",
    "NVIDIA GeForce RTX 4090": "NVIDIA GeForce RTX 4090",
    "NVIDIA H100 PCIe": "NVIDIA H100 PCIe",
    "NVIDIA H100 80GB HBM3": "NVIDIA H100 SXM",
    "NVIDIA H100 NVL": "NVIDIA H100 NVL",
    "NVIDIA H800": "NVIDIA H800 SXM",
    "NVIDIA H800 PCIe": "NVIDIA H800 PCIe",
    "NVIDIA H20": "NVIDIA H20 96GB",
    "NVIDIA H200": "NVIDIA H200 SXM",
    "NVIDIA GH200 480GB": "NVIDIA GH200 96GB",
    "NVIDIA B200": "NVIDIA B200",
    "AMD Instinct MI100": "AMD Instinct MI100",
    "AMD Instinct MI210": "AMD Instinct MI210",
    "AMD Instinct MI250": "AMD Instinct MI250",
    "AMD Instinct MI250X": "AMD Instinct MI250X",
    "AMD Instinct MI300A": "AMD Instinct MI300A",
    "AMD Instinct MI300X": "AMD Instinct MI300X",
    "AMD Instinct MI300X VF": "AMD Instinct MI300X",
    "AMD Instinct MI325X": "AMD Instinct MI325X",
    "AMD Instinct MI355X": "AMD Instinct MI355X",
    "Intel(R) Data Center GPU Max 1550": "Intel Data Center GPU Max 1550",
    "Intel(R) Data Center GPU Max 1100": "Intel Data Center GPU Max 1100",
    "GAUDI2": "Intel Gaudi 2",
    "GAUDI3": "Intel Gaudi 3",
    "TPU v4": "Google TPU v4",
    "TPU v5 lite": "Google TPU v5e",
    "TPU v5p": "Google TPU v5p",
    "Ascend910A": "Huawei Ascend 910",
    "Ascend910B2": "Huawei Ascend 910B (B1, B2, B3)",
    "Ascend910B3": "Huawei Ascend 910B (B1, B2, B3)",
    "Ascend910B4": "Huawei Ascend 910B4",
    "MLU370-X8": "Cambricon MLU370-X8",
    "MTT S4000": "Moore Threads MTT S4000",
}

# Names that exist or could, close to a product of the table, and that are not it or do not say which one they are.
OTHERS = [
    "",
    "cpu",
    "NVIDIA",
    "NVIDIA GPU",
    "H100",
    "NVIDIA H100",
    "NVIDIA A100",
    "NVIDIA A100 80GB",
    "NVIDIA A100-SXM-64GB",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
    "GRID A100D-80C",
    "NVIDIA A100X",
    "NVIDIA A800 40GB Active",
    "NVIDIA A10G",
    "NVIDIA A16",
    "NVIDIA L40",
    "NVIDIA L20",
    "NVIDIA T400",
    "Tesla V100-PCIE-32GB",
    "Tesla V100-SXM3-32GB",
    "Tesla V100S-PCIE-32GB",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA H20-3e",
    "NVIDIA H200 NVL",
    "NVIDIA GH200 144G HBM3e",
    "NVIDIA GB200",
    "NVIDIA B100",
    "AMD Instinct MI250X / MI250",
    "AMD Instinct MI308X",
    "AMD Instinct MI350X",
    "AMD Radeon Graphics",
    "AMD A10",
    "AMD A10-7850K Radeon R7, 12 Compute Cores 4C+8G",
    "Intel(R) Data Center GPU Max 1350",
    "Intel(R) Data Center GPU Flex 170",
    "TPU v5",
    "Ascend910B",
    "Ascend910ProB",
    "Ascend910_9392",
    "Ascend310P3",
    "MLU370-X4",
    "MTT S80",
    "Intel(R) Xeon(R) Platinum 8480+",
    "AMD EPYC 9654 96-Core Processor",
]

# Units of a product, operations of a unit a clock, and the clock in Hz, from the vendors' architecture papers: a second
# road to the printed rate, so that a wrong digit or a sparse rate in the table shows.
CLOCKED = [
    ("NVIDIA V100 SXM2 32GB", "fp16", 80, 1024, 1.53e9),
    ("NVIDIA V100 SXM2 32GB", "fp32", 80, 128, 1.53e9),
    ("NVIDIA V100 SXM2 32GB", "fp64", 80, 64, 1.53e9),
    ("NVIDIA T4", "fp16", 40, 1024, 1.59e9),
    ("NVIDIA T4", "fp32", 40, 128, 1.59e9),
    ("NVIDIA A10", "bf16", 72, 1024, 1.695e9),
    ("NVIDIA A10", "fp32", 72, 256, 1.695e9),
    ("NVIDIA A30", "bf16", 56, 2048, 1.44e9),
    ("NVIDIA A30", "fp64_tensor", 56, 128, 1.44e9),
    ("NVIDIA A100 80GB SXM", "bf16", 108, 2048, 1.41e9),
    ("NVIDIA A100 80GB SXM", "fp32", 108, 128, 1.41e9),
    ("NVIDIA A100 80GB SXM", "fp64_tensor", 108, 128, 1.41e9),
    ("NVIDIA L4", "bf16", 58, 1024, 2.04e9),
    ("NVIDIA L4", "fp32", 58, 256, 2.04e9),
    ("NVIDIA L40S", "fp8", 142, 2048, 2.52e9),
    ("NVIDIA L40S", "fp32", 142, 256, 2.52e9),
    ("NVIDIA GeForce RTX 3090", "bf16", 82, 512, 1.695e9),
    ("NVIDIA GeForce RTX 3090", "int8", 82, 2048, 1.695e9),
    ("NVIDIA GeForce RTX 4090", "bf16", 128, 512, 2.52e9),
    ("NVIDIA GeForce RTX 4090", "fp32", 128, 256, 2.52e9),
    ("NVIDIA H100 PCIe", "bf16", 114, 4096, 1.62e9),
    ("NVIDIA H100 PCIe", "fp32", 114, 256, 1.755e9),
    ("NVIDIA H100 SXM", "bf16", 132, 4096, 1.83e9),
    ("NVIDIA H100 SXM", "fp32", 132, 256, 1.98e9),
    ("NVIDIA B200", "bf16", 148, 8192, 1.86e9),
    ("AMD Instinct MI100", "fp16", 120, 1024, 1.502e9),
    ("AMD Instinct MI100", "fp32", 120, 128, 1.502e9),
    ("AMD Instinct MI210", "fp16", 104, 1024, 1.7e9),
    ("AMD Instinct MI210", "fp64", 104, 128, 1.7e9),
    ("AMD Instinct MI250", "fp16", 208, 1024, 1.7e9),
    ("AMD Instinct MI250X", "fp16", 220, 1024, 1.7e9),
    ("AMD Instinct MI250X", "fp64_tensor", 220, 256, 1.7e9),
    ("AMD Instinct MI300A", "fp16", 228, 2048, 2.1e9),
    ("AMD Instinct MI300X", "fp16", 304, 2048, 2.1e9),
    ("AMD Instinct MI300X", "fp64", 304, 128, 2.1e9),
    ("AMD Instinct MI325X", "fp8", 304, 4096, 2.1e9),
    ("AMD Instinct MI355X", "fp16", 256, 4096, 2.4e9),
    ("AMD Instinct MI355X", "fp64", 256, 128, 2.4e9),
    ("Intel Data Center GPU Max 1550", "fp64", 128, 256, 1.6e9),
]

# Width of the memory bus in bits and transfers a second and pin (AMD rounds 6.144 and 8.192 TB/s too far for this).
BUSES = [
    ("NVIDIA A10", 384, 12.5e9),
    ("NVIDIA A100 40GB SXM", 5120, 2.43e9),
    ("NVIDIA L4", 192, 12.5e9),
    ("NVIDIA L40S", 384, 18e9),
    ("NVIDIA GeForce RTX 3090", 384, 19.5e9),
    ("NVIDIA GeForce RTX 4090", 384, 21e9),
    ("NVIDIA H100 SXM", 5120, 5.24e9),
    ("AMD Instinct MI100", 4096, 2.4e9),
    ("AMD Instinct MI210", 4096, 3.2e9),
    ("AMD Instinct MI250X", 8192, 3.2e9),
    ("AMD Instinct MI300X", 8192, 5.2e9),
    ("Moore Threads MTT S4000", 384, 16e9),
]

ALL = pytest.mark.parametrize("sheet", datasheets(), ids=lambda sheet: sheet.name)

VALID = """schema: assay-datasheets/1
products:
  - name: Acme X1
    vendor: Acme
    brand: [acme]
    matches: [x1]
    peaks: {fp16: 312.0e+12, memory_bytes: 80e9}
    source: Acme X1, data sheet, Acme
    date: "2024"
"""


def named(name: str) -> Datasheet:
    return next(sheet for sheet in datasheets() if sheet.name == name)


def found_name(device_name: str) -> str | None:
    sheet = find_datasheet(device_name)
    return sheet.name if sheet else None


@pytest.mark.parametrize(("device_name", "product"), REPORTED.items())
def test_a_name_that_drivers_report_finds_its_product(device_name: str, product: str) -> None:
    assert found_name(device_name) == product


def test_every_product_has_a_reported_name_in_these_tests() -> None:
    assert {sheet.name for sheet in datasheets()} == set(REPORTED.values())


@pytest.mark.parametrize("device_name", OTHERS)
def test_another_or_unclear_name_finds_nothing(device_name: str) -> None:
    assert found_name(device_name) is None


@given(sheet=st.sampled_from(datasheets()), data=st.data())
def test_vendor_words_separators_and_case_do_not_change_the_product(sheet: Datasheet, data: st.DataObject) -> None:
    around = st.lists(st.sampled_from([*sheet.brand, "GPU", "Accelerator", "(R)", "(TM)"]), max_size=3)
    core = re.sub(" ", data.draw(st.sampled_from([" ", "-", "_", "  "])), data.draw(st.sampled_from(sheet.matches)))
    name = " ".join([*data.draw(around), core, *data.draw(around)])
    cased = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    assert find_datasheet(cased) == sheet


@given(
    sheet=st.sampled_from(datasheets()),
    word=st.sampled_from(["Ti", "Super", "D", "Laptop", "MIG", "3e", "Max-Q", "é"])
    | st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True),
    behind=st.booleans(),
    data=st.data(),
)
def test_a_word_more_is_not_the_same_product(sheet: Datasheet, word: str, behind: bool, data: st.DataObject) -> None:
    core = data.draw(st.sampled_from(sheet.matches))
    if word.strip().lower() in {*sheet.brand, "gpu", "accelerator", "corporation", "r", "tm"}:
        return
    words = [core, word] if behind else [word, core]
    found = find_datasheet(" ".join([*sheet.brand[:1], *words]))
    # `h800` and `pcie` make a name of another product; `mi300x` and `vf` one more name of the same.
    assert found != sheet or " ".join(words).lower().strip() in sheet.matches


def test_a_name_that_fits_products_of_two_vendors_finds_nothing(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(VALID.replace("[x1]", "[a10]"))
    both = [*datasheets(), *load_datasheets(own)]
    assert find_datasheet("A10", both) is None
    assert find_datasheet("NVIDIA A10", both) == named("NVIDIA A10")
    assert find_datasheet("Acme A10", both) == both[-1]


def test_a100_is_as_printed() -> None:
    sheet = find_datasheet("NVIDIA A100-SXM4-80GB")
    assert sheet is not None
    figures = {key: peak(sheet, key) for key in PEAK_UNITS}
    assert figures == {
        "fp64": 9.7e12,
        "fp64_tensor": 19.5e12,
        "fp32": 19.5e12,
        "fp32_tensor": None,
        "tf32": 156e12,
        "bf16": 312e12,
        "fp16": 312e12,
        "fp8": None,
        "int8": 624e12,
        "int16": None,
        "memory_bytes": 80e9,
        "memory_bandwidth": 2039e9,
        "interconnect": 600e9,
        "host_link": 32e9,
        "power": 400,
    }


@pytest.mark.parametrize(("name", "key", "units", "operations", "clock"), CLOCKED)
def test_rate_is_units_times_operations_times_clock(
    name: str, key: str, units: int, operations: int, clock: float
) -> None:
    printed = getattr(named(name).peaks, key)
    assert printed == pytest.approx(units * operations * clock, rel=0.01)


@pytest.mark.parametrize(("name", "bits", "transfers"), BUSES)
def test_memory_bandwidth_is_width_times_rate(name: str, bits: int, transfers: float) -> None:
    assert named(name).peaks.memory_bandwidth == pytest.approx(bits / 8 * transfers, rel=0.005)


@ALL
def test_rates_of_a_product_agree_with_each_other(sheet: Datasheet) -> None:
    got = sheet.peaks.model_dump()

    def in_order(*keys: str) -> bool:
        known = [got[key] for key in keys if got[key] is not None]
        return known == sorted(known)

    assert in_order("fp64", "fp64_tensor", "fp32_tensor")
    assert in_order("fp64", "fp32", "fp32_tensor", "tf32", "bf16", "fp16", "fp8")
    assert in_order("bf16", "int16", "int8")
    if got["bf16"] and got["fp16"]:
        assert got["bf16"] == got["fp16"] / (2 if sheet.name == "AMD Instinct MI100" else 1)
    if got["tf32"] and got["bf16"]:
        assert got["tf32"] == pytest.approx(got["bf16"] / 2, rel=0.015)
    if got["fp8"] and got["fp16"]:
        assert got["fp8"] == pytest.approx(got["fp16"] * 2, rel=0.015)
    if got["fp8"] and got["int8"] and sheet.name != "NVIDIA GeForce RTX 4090":  # FP32 sums halve FP8 there
        assert got["fp8"] == got["int8"]
    if got["fp16"] and got["memory_bandwidth"]:
        assert 30 < got["fp16"] / got["memory_bandwidth"] < 500  # FLOP a byte: a slip of a thousand shows


@ALL
def test_every_product_names_its_document(sheet: Datasheet) -> None:
    assert sheet.vendor in sheet.source or "press" in sheet.source or "npu-smi" in sheet.source
    assert sheet.name.split()[0].lower() in sheet.vendor.lower()
    assert any(value is not None for value in sheet.peaks.model_dump().values())


def test_a_package_of_two_devices_is_halved_and_what_they_share_is_unknown() -> None:
    sheet = named("AMD Instinct MI250X")
    assert sheet.peaks.fp16 == 383e12
    assert peak(sheet, "fp16") == 191.5e12
    assert peak(sheet, "memory_bytes") == 64e9
    assert peak(sheet, "power") is None
    assert peak(sheet, "interconnect") is None


def test_no_peak_where_the_number_of_devices_is_unknown() -> None:
    sheet = named("Intel Data Center GPU Max 1550")
    assert sheet.devices is None
    assert {peak(sheet, key) for key in PEAK_UNITS} == {None}


def test_an_unknown_peak_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="unknown peak 'fp17'; known: fp64"):
        peak(named("NVIDIA T4"), "fp17")


def test_the_shipped_table_cannot_be_changed_through_its_list() -> None:
    datasheets().clear()
    assert found_name("Tesla T4") == "NVIDIA T4"


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(VALID)
    (sheet,) = load_datasheets(own)
    assert find_datasheet("ACME X1", [sheet]) == sheet
    assert (peak(sheet, "fp16"), peak(sheet, "memory_bytes"), peak(sheet, "bf16")) == (312e12, 80e9, None)


TWIN = VALID.partition("products:\n")[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", ": expected a mapping with the keys schema and products"),
        ("schema: [", ":1: is no valid YAML"),
        (VALID.replace("/1", "/9"), ":1: schema: input should be 'assay-datasheets/1'"),
        (VALID.replace("312.0e+12", "312"), ":7: products[0].peaks.fp16: input should be greater than"),
        (VALID.replace("80e9", "80"), ":7: products[0].peaks.memory_bytes: input should be greater than"),
        (VALID.replace("312.0e+12", ".nan"), ":7: products[0].peaks.fp16: input should be a finite number"),
        (VALID.replace("312.0e+12", "fast"), ":7: products[0].peaks.fp16: input should be a valid number"),
        (VALID.replace("fp16", "pf16"), ":7: products[0].peaks.pf16: unknown key 'pf16'; did you mean 'fp16'?"),
        (VALID.replace("[x1]", "[]"), ":6: products[0].matches: list should have at least 1 item"),
        (VALID.replace("[x1]", "[acme gpu]"), ":6: products[0].matches: expected words that name a product"),
        (VALID.replace('"2024"', "soon"), ":9: products[0].date: string should match pattern"),
        (VALID.replace("    vendor: Acme\n", ""), ":3: products[0].vendor: key 'vendor' is missing"),
        (VALID + "    url: javascript:alert(1)\n", ":10: products[0].url: string should match pattern"),
        (VALID + TWIN, ":10: products[1].name: 'Acme X1' is there twice; keep one"),
        (
            VALID + TWIN.replace("Acme X1", "Acme X2", 1),
            ":13: products[1].matches[0]: 'x1' is a name of Acme X1 already",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_key(tmp_path: Path, text: str, said: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(BadInput, match=re.escape(f"{own}{said}")):
        load_datasheets(own)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        load_datasheets(tmp_path / "missing.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is not UTF-8 text"):
        load_datasheets(binary)
