"""Error counters of network interfaces and of InfiniBand ports.

They are read every ten seconds: only their rise over a case matters, and a port's counter is a command to its adapter.
"""

from pathlib import Path

from assay.sensors.source import Files, Gauge, number_of

PERIOD = 10.0

_INTERFACE = ("rx_errors", "tx_errors", "rx_missed_errors", "rx_dropped", "tx_dropped")
# Counters that mean a faulty link or lost packets. Those of mere congestion or of ordinary multicast are left out.
_PORT = (
    "symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors", "port_rcv_remote_physical_errors",
    "port_xmit_discards", "local_link_integrity_errors", "excessive_buffer_overrun_errors",
)  # fmt: skip
_HARDWARE = (
    "out_of_sequence", "packet_seq_err", "implied_nak_seq_err", "local_ack_timeout_err", "rnr_nak_retry_err",
    "out_of_buffer", "rx_icrc_encapsulated",
)  # fmt: skip


def open_links(root: Path) -> Files | str:
    """The error counters of this host's real interfaces and InfiniBand ports below `root`, or why there are none."""
    source = Files("links", PERIOD)
    for interface in _interfaces(root / "sys/class/net"):
        for counter in _INTERFACE:
            tags = {"device": interface.name, "counter": counter}
            source.add(interface / "statistics" / counter, Gauge("link_errors", "1", tags))
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        device = f"{port.parents[1].name}/{port.name}"
        for folder, counters in (("counters", _PORT), ("hw_counters", _HARDWARE)):
            for counter in counters:
                tags = {"device": device, "counter": counter}
                source.add(port / folder / counter, Gauge("link_errors", "1", tags))
    return source if len(source) else f"no network interface with counters in {root / 'sys/class/net'}"


def _interfaces(folder: Path) -> list[Path]:
    present = [path for path in sorted(folder.glob("*")) if path.name != "lo" and path.is_dir()]
    real = [path for path in present if (path / "device").exists()]
    if real:
        return real
    # In a container the way out is one end of a pair whose other end is another interface; bridges, dummies and the
    # like are linked to themselves.
    return [path for path in present if number_of(path / "iflink") != number_of(path / "ifindex")]
