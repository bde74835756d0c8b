#!/usr/bin/env python3
"""Where a live message waits while a backlog is drained: `backlog-live` of the macro benchmark, stage by stage.

    cargo bench --no-run --bench macro        # prints the program's path
    benches/stages.py target/release/deps/macro-… --backlog-bytes 4000000000 --live-rate 500000 --dir DIRECTORY

perf follows the program and the twinlog that it starts, and notes the system calls that move bytes. Over one connection
bytes come in order, so counting them tells when any message was written by the generator, read, written and synced by
the journal, sent, and read by the sink. Root, perf with tracepoints, and half a gigabyte of /dev/shm for 4 GB.
"""

import argparse
import bisect
import collections
import subprocess
import sys
import tempfile

LINE_BYTES = 257
CALLS = "read write recvfrom sendto writev pwritev pwrite64 sendmsg recvmsg fdatasync".split()
WRITES = {"write", "sendto", "writev", "sendmsg"}
JOURNAL = "journal"


def trace(program, arguments):
    """Runs the benchmark; returns what perf noted, as (process, thread, nanoseconds, call, is_entry, number)."""
    events = [f"--event=syscalls:sys_{side}_{call}" for call in CALLS for side in ("enter", "exit")]
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as data:
        command = [program, "--bench", "--only", "backlog-live", "--relay", "twinlog", "--rounds", "1", *arguments]
        subprocess.run(["perf", "record", "-q", "-m", "4096", "-o", data.name, *events, "--", *command], check=True)
        fields = ["-F", "pid,tid,time,event,trace", "--ns"]
        command = ["perf", "script", "-i", data.name, *fields]
        script = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in script.stdout:
            ids, time, event, rest = line.split(None, 3)
            process, thread = ids.split("/")
            seconds, nanoseconds = time.rstrip(":").split(".")
            side, call = event.removeprefix("syscalls:sys_").rstrip(":").split("_", 1)
            first = rest.split(",")[0].removeprefix("fd:")
            number = int(first, 16)
            yield int(process), thread, int(seconds) * 10**9 + int(nanoseconds), call, side == "enter", number


def flows(events):
    """By process, direction and descriptor (the benchmark's own: by thread): times and bytes so far. And all syncs."""
    total, moved = collections.Counter(), collections.defaultdict(list)
    begun, syncs, first = {}, [], None
    for process, thread, time, call, is_entry, number in events:
        first = first or process
        if is_entry:
            begun[thread] = (call, number, time)
            continue
        called, descriptor, since = begun.pop(thread, (None, 0, 0))
        if called != call or number >= 1 << 63:
            continue
        side = "benchmark" if process == first else "daemon"
        if call == "fdatasync":
            syncs.append((time, since))
        elif number > 0:
            direction = JOURNAL if call.startswith("pwrite") else "out" if call in WRITES else "in"
            own = descriptor if side == "daemon" else thread
            place = 0 if direction == JOURNAL or (side, direction) == ("benchmark", "out") else own
            total[side, direction, place] += number
            moved[side, direction, place].append((time, total[side, direction, place]))
    return moved, sorted(syncs)


def largest(moved, side, direction, count):
    """The `count` largest flows of a kind, the one that began first in front."""
    kind = [flow for key, flow in moved.items() if key[:2] == (side, direction)]
    return sorted(sorted(kind, key=lambda flow: -flow[-1][1])[:count], key=lambda flow: flow[0][0])


def without_headers(journal, read, still):
    """The journal's flow in bytes of messages. What it adds is so much a byte and so much a read, known from two moments at
    which all that had been read was written: the pause at `still`, and the end."""
    reads = sum(time < still for time, _ in read)
    (a, b, c), (d, e, f) = [
        (max(byte for time, byte in read if time <= until), count, max(byte for time, byte in journal if time <= until))
        for until, count in ((still, reads), (read[-1][0] + 10**10, len(read)))
    ]
    per_byte, per_read = (c * e - b * f) / (a * e - b * d), (a * f - c * d) / (a * e - b * d)
    expected = [per_byte * byte + per_read * (number + 1) for number, (_, byte) in enumerate(read)]
    return [(time, read[min(bisect.bisect_left(expected, byte), len(read) - 1)][1]) for time, byte in journal]


def durable(journal, syncs):
    """What was written when a sync began is safe when it ends."""
    times, flow = [time for time, _ in journal], []
    for ended, began in syncs:
        at = bisect.bisect_right(times, began)
        if at and (not flow or journal[at - 1][1] > flow[-1][1]):
            flow.append((ended, journal[at - 1][1]))
    return flow


def report(title, stages, due, since, until):
    """Prints how long messages due from `since` to `until` were in each stage."""
    columns = [([byte for _, byte in flow], [time for time, _ in flow]) for _, flow in stages]
    rows = []
    for nanoseconds in range(int(since), int(until), 200_000):
        byte, times = due(nanoseconds), [nanoseconds]
        for bytes_so_far, when in columns:
            at = bisect.bisect_left(bytes_so_far, byte)
            if at == len(when):
                break
            times.append(when[at])
        else:
            rows.append([(b - a) / 1e6 for a, b in zip(times, times[1:])] + [(times[-1] - times[0]) / 1e6])
    rows.sort(key=lambda row: row[-1])
    slowest = rows[-max(1, len(rows) // 100):]
    print(f"\n{title}, {(until - since) / 1e9:.1f} s, ms:\n{'':18}{'p50':>8}{'p99':>8}{'max':>8}  mean of the slowest 1 %")
    for column, name in enumerate([name for name, _ in stages] + ["all"]):
        values = sorted(row[column] for row in rows)
        mean = sum(row[column] for row in slowest) / len(slowest)
        half, most = values[len(values) // 2], values[len(values) * 99 // 100]
        print(f"{name:18}{half:8.2f}{most:8.2f}{values[-1]:8.2f}{mean:12.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("--backlog-bytes", type=int, default=4_000_000_000)
    parser.add_argument("--live-rate", type=int, default=500_000)
    known, rest = parser.parse_known_args()
    rest += ["--backlog-bytes", str(known.backlog_bytes), "--live-rate", str(known.live_rate)]
    moved, syncs = flows(trace(known.program, rest))
    [generator], [read], [journal] = [
        largest(moved, *kind, 1) for kind in (("benchmark", "out"), ("daemon", "in"), ("daemon", JOURNAL))
    ]
    live, backlog = largest(moved, "daemon", "out", 2)
    sink = largest(moved, "benchmark", "in", 2)[0]

    # The live load begins behind the longest pause near the end of the backlog.
    near = [i for i in range(1, len(generator)) if 0.9 < generator[i][1] / known.backlog_bytes < 1.02]
    begin = max(near, key=lambda i: generator[i][0] - generator[i - 1][0])
    base, rate = generator[begin - 1][1], known.live_rate * LINE_BYTES / 1e9
    start = min(time - (byte - base) / rate for time, byte in generator[begin:])
    journal = without_headers(journal, read, generator[begin][0] - 1)
    stages = [
        ("due to sent", generator), ("to read", read), ("to written", journal), ("to synced", durable(journal, syncs)),
        ("to forwarded", live), ("to the sink", sink),
    ]
    opened = backlog[0][0]
    sent = ([time for time, _ in live], [byte for _, byte in live])
    behind = lambda time, byte: sent[1][bisect.bisect_right(sent[0], time) - 1] - byte > rate * 1e8
    caught_up = next((time for time, byte in backlog if not behind(time, byte)), backlog[-1][0])
    due = lambda time: base + (time - start) * rate
    report("before", stages, due, start + 5e8, opened)
    report("draining", stages, due, opened, caught_up)


if __name__ == "__main__":
    sys.exit(main())
