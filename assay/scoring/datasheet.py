"""What vendors print about their accelerators: the rows of datasheets.yaml, found by the name that a driver reports.

A datasheet figure is never a measurement and never stands alone: it is shown beside the measured ceiling, with its source.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from assay.errors import BadInput
from assay.located import KeyPath, Where, read_yaml
from assay.options.base import problems

# Bounds catch a wrong unit (312 for 312 TFLOP/s, 80 for 80 GB), not a wrong digit.
_Fp64 = Annotated[float, Field(ge=1e11, le=1e16, allow_inf_nan=False)]
_Fp32 = Annotated[float, Field(ge=1e12, le=1e16, allow_inf_nan=False)]
_Matrix = Annotated[float, Field(ge=1e12, le=1e17, allow_inf_nan=False)]
_Memory = Annotated[float, Field(ge=1e9, le=1e13, allow_inf_nan=False)]
_Bandwidth = Annotated[float, Field(ge=1e9, le=1e14, allow_inf_nan=False)]
_Power = Annotated[float, Field(ge=5, le=10_000, allow_inf_nan=False)]

# Words that vendors put around a product's name and that tell nothing about which product it is.
_FILLERS = {"gpu", "accelerator", "corporation", "r", "tm"}
# What the devices of one package have together, so that no part of it belongs to one of them.
_SHARED = {"interconnect", "host_link", "power"}


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Peaks(_Data):
    """Printed peaks of one product in base units; None where unknown, not published, or in dispute.

    fp64, fp32: vector units. fp64_tensor, fp32_tensor: matrix units at full precision. tf32 … int16: matrix units, dense
    (never "with sparsity"), sums in FP32 or INT32. memory_bytes: as sold (GB = 10⁹). interconnect: links to other
    accelerators, both directions together, as vendors print it. host_link: link to the host, one direction, before
    encoding. power: thermal design or total board power.
    """

    fp64: _Fp64 | None = None
    fp64_tensor: _Fp64 | None = None
    fp32: _Fp32 | None = None
    fp32_tensor: _Fp32 | None = None
    tf32: _Matrix | None = None
    bf16: _Matrix | None = None
    fp16: _Matrix | None = None
    fp8: _Matrix | None = None
    int8: _Matrix | None = None
    int16: _Matrix | None = None
    memory_bytes: _Memory | None = None
    memory_bandwidth: _Bandwidth | None = None
    interconnect: _Bandwidth | None = None
    host_link: _Bandwidth | None = None
    power: _Power | None = None


_UNITS = {"int8": "OP/s", "int16": "OP/s", "memory_bytes": "B", "power": "W"}
_UNITS |= dict.fromkeys(("memory_bandwidth", "interconnect", "host_link"), "B/s")
PEAK_UNITS: Mapping[str, str] = MappingProxyType({key: _UNITS.get(key, "FLOP/s") for key in Peaks.model_fields})


class Datasheet(_Data):
    """One product as its vendor describes it.

    brand: the vendor's own words that may stand around the product's name. matches: the product's names without them.
    devices: as how many devices the driver shows one product; None where that depends on how the host is set up.
    source, url, date: the document (date as far as it is known).
    """

    name: str = Field(min_length=1)
    vendor: str = Field(min_length=1)
    brand: list[str]
    matches: list[str] = Field(min_length=1)
    devices: int | None = Field(default=1, ge=1, le=16)
    peaks: Peaks
    source: str = Field(min_length=1)
    url: str | None = Field(default=None, pattern=r"^https://\S+$")
    date: str = Field(pattern=r"^\d{4}(-\d\d){0,2}$")
    note: str | None = None

    @field_validator("matches")
    @classmethod
    def _name_a_product(cls, matches: list[str], info: ValidationInfo) -> list[str]:
        for match in matches:
            # A bare brand would claim every product of its vendor that the driver does not name.
            if not _without(info.data.get("brand", []), match):
                raise ValueError(f"expected words that name a product, such as 'a100 sxm4 80gb', got {match!r}")
        return matches


class _Table(_Data):
    schema_: Literal["assay-datasheets/1"] = Field(alias="schema")
    products: list[Datasheet]


def load_datasheets(path: Path) -> list[Datasheet]:
    """The products of a file of one's own. Raises BadInput with file, line and key for each thing wrong with it."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}; give a file of datasheets") from None
    return _parse(text, str(path))


def datasheets() -> list[Datasheet]:
    """The products that come with the suite."""
    return list(_shipped())


def find_datasheet(device_name: str, sheets: Sequence[Datasheet] | None = None) -> Datasheet | None:
    """The product that a driver calls `device_name`, out of `sheets` (default: the shipped ones).

    Every word of the name must be the product's or its brand's, so a word that is not known (`Laptop`, `D`, `MIG 1g.5gb`)
    means another product: None. None too where the name fits several ("H100"), and for processors.
    """
    found = [
        sheet
        for sheet in (_shipped() if sheets is None else sheets)
        if (words := _without(sheet.brand, device_name)) and words in [_without(sheet.brand, m) for m in sheet.matches]
    ]
    return found[0] if len(found) == 1 else None


def peak(sheet: Datasheet, key: str) -> float | None:
    """The printed peak of one device, as the driver counts devices, in the unit of `PEAK_UNITS[key]`.

    Where one product is several devices, each has its part of rates and memory; what they share (links, power) has no
    part: None. Raises ValueError for an unknown key.
    """
    if key not in PEAK_UNITS:
        raise ValueError(f"unknown peak {key!r}; known: {', '.join(PEAK_UNITS)}")
    value: float | None = getattr(sheet.peaks, key)
    if value is None or sheet.devices == 1:
        return value
    return None if sheet.devices is None or key in _SHARED else value / sheet.devices


@cache
def _shipped() -> tuple[Datasheet, ...]:
    text = resources.files("assay.scoring").joinpath("datasheets.yaml").read_text("utf-8")
    return tuple(_parse(text, "datasheets.yaml"))


def _parse(text: str, source: str) -> list[Datasheet]:
    data, lines = read_yaml(text, source)
    where = Where(source, lines)
    if not isinstance(data, dict):
        raise BadInput(
            f"{source}: expected a mapping with the keys schema and products; see assay/scoring/datasheets.yaml"
        )
    try:
        table = _Table.model_validate(data)
    except ValidationError as error:
        raise BadInput("\n".join(where.sentence(path, said) for path, said in problems(error, _Table))) from None
    _refuse_twins(table.products, where)
    return table.products


def _refuse_twins(products: Sequence[Datasheet], where: Where) -> None:
    """Two products with one name would hide each other from `find_datasheet` without a word."""
    seen: dict[tuple[str, ...], str] = {}
    names: set[str] = set()
    for index, sheet in enumerate(products):
        path: KeyPath = ("products", index, "name")
        if sheet.name in names:
            raise BadInput(where.sentence(path, f"{sheet.name!r} is there twice; keep one"))
        names.add(sheet.name)
        for number, match in enumerate(sheet.matches):
            words = tuple(_without(sheet.brand, match))
            if words in seen:
                path = ("products", index, "matches", number)
                raise BadInput(where.sentence(path, f"{match!r} is a name of {seen[words]} already; keep one"))
            seen[words] = sheet.name


def _words(text: str) -> list[str]:
    """Lower-case words of a name, without fillers: `Intel(R) Data Center GPU Max 1550` → intel data center max 1550."""
    return [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in _FILLERS]


def _without(brand: Sequence[str], text: str) -> list[str]:
    return [word for word in _words(text) if word not in brand]
