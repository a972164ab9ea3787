"""Sensors: what the machine says about itself while a case runs, sampled by one small process a host.

Power, energy, temperature, clocks, throttling and error counters, once a second, into `<out>/sensors-<rank>.jsonl`
beside the ranks' own records (same schema; the header is that of the rank that started the process).

- `sidecar.py` is the rank's side: local rank 0 of a host starts the process and ends it.
- `__main__.py` is that process; `sampler.py` its ticks and its file.
- `source.py` says what a source is. Sources: `nvml.py`, `powercap.py` (RAPL), `hwmon.py` (kernel drivers of
  accelerators), `processor.py`, `quota.py` (cgroups), `links.py` (network and InfiniBand), `tool.py` (a vendor's own
  tool); `inventory.py` opens what there is and says why the rest is not.

Two variables of the environment:

- `ASSAY_SENSORS=off` starts no process; `on`, or unset, starts it.
- `ASSAY_SENSOR_COMMAND="npu-tool --watch"` starts that command once a host, without a shell. It prints one JSON object
  a line: `{"device": "npu0", "power": 301.5, "temperature": 61, "clock": 1.8e9}`; `tool.py` lists the keys.

A file holds, source by source, a block `sensor_time` (monotonic seconds of each reading) and behind it one block a
series with as many samples in the same order; all bear the tag `source`. Counters count from whenever their owner
began; only their rise means anything. Nothing is estimated: without a power sensor the file holds one `power` block
with a null sample and the reason.
"""
