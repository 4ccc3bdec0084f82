"""What a GPU's libraries reach on OPT's shapes: cuBLAS GEMMs, SDPA forward and backward, copies; a line of JSON each.

    ceilings.py > ceilings.jsonl
    ceilings.py --device cpu --shapes opt-125m --tokens 256 --sequences 2x128 --copies 4096     # that it runs
"""
import argparse
import collections
import contextlib
import json
import statistics
import time

import torch
import torch.nn.functional as F

# hidden size, MLP width, heads
SHAPES = {"opt-125m": (768, 3072, 12), "opt-1.3b": (2048, 8192, 32), "opt-2.7b": (2560, 10240, 32), "opt-6.7b": (4096, 16384, 32)}
REPEATS = 20
# As long as JMH warms up and measures on a GPU: over seconds it is the limit of power that says how fast products run.
SECONDS = (0.3, 0.75)
# A copy does not come near the limit of power.
COPY_SECONDS = (0.05, 0.15)
# As in DeviceState.java: calls of a graph, and operands in turns that a second-level cache does not keep.
CALLS = 48
OPERAND_BYTES = 512 * 2**20
MOST_TURNS = 32
LARGE_COPY = {"cuda": 2**30, "cpu": 2**26}


def turns(operand_bytes, device):
    return 1 if device == "cpu" else max(2, min(MOST_TURNS, -(-OPERAND_BYTES // operand_bytes)))


def milliseconds(calls, device, seconds=SECONDS):
    """Median of a call as one of many in a graph; `calls` do the same work, each on operands of its own."""
    for call in calls:
        call()
    if device == "cpu":
        return on_cpu(calls[0])
    # What a call returns lives until its turn comes again: results, too, lie in memory that the cache has let go of.
    results = collections.deque(maxlen=len(calls))
    count = -(-CALLS // len(calls)) * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for i in range(count):
            results.append(calls[i % len(calls)]())
    # The device is still busy when the clock starts: it does not see the host launching what is timed.
    return timed(graph.replay, graph.replay, seconds) / count


def timed(before, run, seconds):
    """Median milliseconds of `run` on the device, each after `before`, over so many seconds after so many of warming up."""
    warmup, measured = seconds
    times = []
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < warmup + measured or not times:
        before()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if passed >= warmup:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def on_cpu(run):
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def report(what, ms, flops=0, moved=0, **more):
    line = dict(what=what, **more, ms=round(ms, 6))
    if flops:
        line["tflops"] = round(flops / ms / 1e9, 2)
    if moved:
        line["tbps"] = float(f"{moved / ms / 1e9:.4g}")
    print(json.dumps(line), flush=True)


def gemms(shape, tokens, device):
    hidden, ffn, _ = SHAPES[shape]

    # As the benchmarks draw theirs: how much power a product takes depends on its values.
    def random(*size, bound=1.0):
        return torch.empty(size, device=device, dtype=torch.bfloat16).uniform_(-bound, bound)

    for layer, out, inner in (("qkv", 3 * hidden, hidden), ("out", hidden, hidden), ("fc1", ffn, hidden), ("fc2", hidden, ffn)):
        labels = dict(flops=2 * tokens * out * inner, shape=shape, layer=layer, tokens=tokens)
        count = turns(2 * (tokens * inner + tokens * out + out * inner), device)
        weights = [random(out, inner, bound=inner**-0.5) for _ in range(count)]
        xs = [random(tokens, inner) for _ in range(count)]
        report("gemm.forward", milliseconds([lambda x=x, w=w: F.linear(x, w) for x, w in zip(xs, weights)], device), **labels)
        epilogue, calls = with_epilogue(layer, xs, weights, [random(tokens, out) for _ in range(count)], random(out))
        report("gemm.forward", milliseconds(calls, device), epilogue=epilogue, **labels)
        dys = [random(tokens, out) for _ in range(count)]
        report("gemm.backward", milliseconds([lambda dy=dy, w=w: dy @ w for dy, w in zip(dys, weights)], device), **labels)


def with_epilogue(layer, xs, weights, residuals, bias):
    """What cuBLAS ends a layer's product with in the same call, as far as PyTorch lets it: its name, and the calls."""
    operands = list(zip(residuals, xs, weights))
    if layer == "qkv":
        return "bias", [lambda x=x, w=w: F.linear(x, w, bias) for _, x, w in operands]
    if layer == "fc1":
        return "bias and ReLU", [lambda x=x, w=w: torch._addmm_activation(bias, x, w.t()) for _, x, w in operands]
    return "residual", [lambda r=r, x=x, w=w: torch.addmm(r, x, w.t()) for r, x, w in operands]


def attention(shape, batch, length, device):
    hidden, _, heads = SHAPES[shape]

    def random(requires_grad=False):
        size = (batch, heads, length, hidden // heads)
        return torch.empty(size, device=device, dtype=torch.bfloat16).uniform_(-1, 1).requires_grad_(requires_grad)

    # q, k, v and o; backward has as many gradients, and a turn is at least twice as large.
    count = turns(4 * 2 * hidden * batch * length, device)
    operands = [tuple(random(requires_grad=True) for _ in range(3)) for _ in range(count)]
    # Two products over the pairs that a causal mask leaves, five in backward.
    flops = 4 * hidden * batch * length * (length + 1) // 2
    labels = dict(shape=shape, batch=batch, length=length)

    def forward(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    report("attention.forward", milliseconds([lambda o=o: forward(*o) for o in operands], device), flops, **labels)
    passes = [(forward(*o), o, random()) for o in operands]
    gradients = [lambda p=p: torch.autograd.grad(p[0], p[1], p[2], retain_graph=True) for p in passes]
    report("attention.backward", milliseconds(gradients, device), 5 * flops // 2, **labels)


def large_copy(device):
    """Outside a graph, where it is faster; after a copy of its own."""
    source = torch.empty(LARGE_COPY[device], device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def copy():
        target.copy_(source)

    report("copy", on_cpu(copy) if device == "cpu" else timed(copy, copy, SECONDS), moved=2 * source.numel())


def copy(moved, device):
    """Of so many bytes, read and written together: the faster of the driver's copy and of PyTorch's kernel for elements."""
    count = turns(moved, device)
    # Elements of four bytes, random as an operation's would be.
    elements = max(1, moved // 8)
    pairs = [(torch.randint(2**31 - 1, (elements,), device=device, dtype=torch.int32),
              torch.empty(elements, device=device, dtype=torch.int32)) for _ in range(count)]
    ms = min(milliseconds([lambda s=s, t=t: t.copy_(s) for s, t in pairs], device, COPY_SECONDS),
             milliseconds([lambda s=s, t=t: torch.neg(s, out=t) for s, t in pairs], device, COPY_SECONDS))
    report("copy", ms, moved=8 * elements, bytes=moved)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["opt-1.3b", "opt-2.7b"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[2048, 4096, 8192])
    parser.add_argument("--sequences", nargs="+", default=["4x512", "4x1024", "4x2048", "1x8192"], help="BATCHxLENGTH")
    parser.add_argument("--copies", nargs="*", type=int, default=[2**25], metavar="BYTES",
                        help="that a copy moves, read and written together; beside a copy of a GiB")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps(dict(device=name, torch=torch.__version__, cuda=torch.version.cuda)), flush=True)
    # A graph is captured from a stream of its own, and a backward pass runs where its forward pass did.
    with torch.cuda.stream(torch.cuda.Stream()) if options.device == "cuda" else contextlib.nullcontext():
        large_copy(options.device)
        for moved in options.copies:
            copy(moved, options.device)
        for shape in options.shapes:
            for tokens in options.tokens:
                gemms(shape, tokens, options.device)
            for sequences in options.sequences:
                attention(shape, *map(int, sequences.split("x")), options.device)


if __name__ == "__main__":
    main()
