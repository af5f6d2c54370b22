#!/usr/bin/env python3
"""10,000 nodes that start within one second and pull one pack: a simulation of what the store sees and how long nodes wait.

Sizes and times are measured (docs/fleet.md says where); the store is a model. Two kinds are known:

- `limited`: answers so many requests a second and refuses the others with 503 "slow down", as object stores do. Amazon documents
  5,500 GET a second for one prefix of a bucket.
- `queueing`: one server with one link: requests wait in line, none is refused.

A node does what `ropejit pull` does: two GETs in turn (`latest`, the pack); a refused one is asked again after 0.2 s, then after
a wait drawn from [0.2 s, 3 x the last wait], a fifth of the time at most, while four fifths of the time last; else it starts cold. Nothing here uses a network.
"""

import argparse
import heapq
import json
import random

# As src/cli/remote/place.rs has them.
FIRST, FACTOR, LAST = 0.2, 3.0, 5


class Limited:
    """Tokens that refill at a rate; a tenth of a second's worth is kept for bursts."""

    def __init__(self, rate):
        self.rate, self.tokens, self.burst, self.at = rate, rate / 10, rate / 10, 0.0

    def ask(self, now, size):
        """When the answer is complete, not counting the way there and back, and whether it is the object."""
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return now, False
        self.tokens -= 1
        return now, True


class Queueing:
    """One link: an answer waits for those before it."""

    def __init__(self, bytes_per_second, per_request):
        self.speed, self.per_request, self.free = bytes_per_second, per_request, 0.0

    def ask(self, now, size):
        self.free = max(self.free, now) + self.per_request + size / self.speed
        return self.free, True


def quantile(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None


def simulate(store, a, jitter, seed=1):
    rng = random.Random(seed)
    sizes = [a.latest_bytes, a.pack_bytes]
    # (time, order, node, which object, the next wait)
    events = []
    starts = [rng.uniform(0, a.spread) for _ in range(a.nodes)]
    for node, start in enumerate(starts):
        heapq.heappush(events, (start + a.round_trip * 1.5, node, node, 0, FIRST))
    order = a.nodes
    seen = {}
    requests = refused = sent = 0
    took, cold = [], 0
    done_by = 0.0
    while events:
        now, _, node, which, wait = heapq.heappop(events)
        if now - starts[node] > a.timeout:
            cold += 1
            continue
        requests += 1
        seen[int(now)] = seen.get(int(now), 0) + 1
        ready, ok = store.ask(now, sizes[which])
        back = ready + a.round_trip / 2
        order += 1
        if not ok:
            refused += 1
            if now - starts[node] > a.timeout * (1 - 1 / LAST):
                cold += 1
                continue
            longest = a.timeout / LAST
            longer = min(longest, rng.uniform(FIRST, wait * FACTOR) if jitter else wait * FACTOR)
            heapq.heappush(events, (back + wait + a.round_trip / 2, order, node, which, longer))
            continue
        # What is asked for is sent, whether or not its reader still waits.
        sent += sizes[which]
        if back - starts[node] > a.timeout:
            cold += 1
        elif which + 1 < len(sizes):
            heapq.heappush(events, (back + a.round_trip / 2, order, node, which + 1, FIRST))
        else:
            took.append(back - starts[node] + a.install)
            done_by = max(done_by, back + a.install)
    warm = len(took)
    assert warm + cold == a.nodes
    return {
        "warm": warm,
        "cold": cold,
        "requests": requests,
        "refused": refused,
        "megabytes": round(sent / 1e6, 1),
        "busiest_second": max(seen.values()),
        "p50_s": quantile(took, 0.5),
        "p99_s": quantile(took, 0.99),
        "last_s": done_by,
    }


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--nodes", type=int, default=10_000)
    p.add_argument("--spread", type=float, default=1.0, help="seconds in which all start")
    p.add_argument("--pack-bytes", type=int, required=True)
    p.add_argument("--latest-bytes", type=int, required=True)
    p.add_argument("--install", type=float, required=True, help="seconds that checking and installing takes a node")
    p.add_argument("--per-request", type=float, default=50e-6, help="seconds of one server for one request")
    p.add_argument("--round-trip", type=float, default=0.02, help="seconds there and back")
    p.add_argument("--timeout", type=float, default=5.0)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    stores = [
        ("5,500 requests/s", lambda: Limited(5500)),
        ("3,500 requests/s", lambda: Limited(3500)),
        ("1,000 requests/s", lambda: Limited(1000)),
        ("one server, 10 Gbit/s", lambda: Queueing(10e9 / 8, a.per_request)),
        ("one server, 1 Gbit/s", lambda: Queueing(1e9 / 8, a.per_request)),
    ]
    rows = []
    for name, make in stores:
        for jitter in (True, False) if isinstance(make(), Limited) else (True,):
            rows.append({"store": name, "jitter": jitter} | simulate(make(), a, jitter))
    if a.json:
        print(json.dumps(rows, indent=1))
        return
    print("| store | back-off | warm | cold | requests | refused | MB sent | busiest second | median | 99 % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        how = ("jittered" if r["jitter"] else "fixed") if r["refused"] else "none needed"
        at = [f"{r[k]:.2f} s" if r[k] is not None else "-" for k in ("p50_s", "p99_s")]
        cells = [r["store"], how, *(f"{r[k]:,}" for k in ("warm", "cold", "requests", "refused", "megabytes", "busiest_second")), *at]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
