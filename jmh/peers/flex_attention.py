"""PyTorch's attention: SDPA, and compiled FlexAttention under random masks of 128 x 128 blocks; a line of JSON each.

The peer of `cuda_attention_speed lists`: causal, bf16, median of batches of calls. A part of the causal blocks of each head and
sample is kept, drawn at random, the diagonal first where there is room for it.

    flex_attention.py > flex.jsonl
    flex_attention.py --shapes 4x32x1024x64 --kept 1 .25
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

SIZE = 128
BATCHES, CALLS = 11, 20


def milliseconds(run):
    for _ in range(3):
        run()
    times = []
    for _ in range(BATCHES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(CALLS):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / CALLS)
    return statistics.median(times)


def random_blocks(samples, heads, blocks, kept):
    """bool [samples, heads, blocks, blocks]: which key blocks each query block sees."""
    lower = torch.ones(blocks, blocks, dtype=torch.bool).tril()
    keep = round(kept * blocks * (blocks + 1) / 2)
    order = torch.rand(samples, heads, blocks, blocks)
    if keep >= blocks:
        order += 2 * torch.eye(blocks)
    order[..., ~lower] = -1
    chosen = order.flatten(2).topk(keep).indices
    mask = torch.zeros(samples, heads, blocks * blocks, dtype=torch.bool).scatter_(2, chosen, True)
    return mask.view(samples, heads, blocks, blocks)


def measure(samples, heads, length, dim, parts):
    size = (samples, heads, length, dim)
    q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    d_o = torch.randn(size, device="cuda", dtype=torch.bfloat16)

    def times(attend):
        with torch.no_grad():
            forward = milliseconds(lambda: attend(q, k, v))
        o = attend(q, k, v)
        return forward, milliseconds(lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True))

    def report(what, attend, **more):
        forward, backward = times(attend)
        print(json.dumps(dict(what=what, shape="x".join(map(str, size)), **more, forward=round(forward, 4), backward=round(backward, 4))), flush=True)

    report("sdpa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    # One function and one tensor for all parts: nothing is compiled again.
    blocks = torch.empty(samples, heads, length // SIZE, length // SIZE, dtype=torch.bool, device="cuda")

    def seen(b, h, row, column):
        return (row >= column) & blocks[b, h, row // SIZE, column // SIZE]

    for kept in parts:
        blocks.copy_(random_blocks(samples, heads, length // SIZE, kept))
        mask = create_block_mask(seen, samples, heads, length, length, device="cuda", BLOCK_SIZE=SIZE)
        report("flex", lambda q, k, v: compiled(q, k, v, block_mask=mask), kept=kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = ["4x32x2048x64", "1x32x8192x64", "4x32x2048x128", "1x32x8192x128", "4x32x1024x64"]
    parser.add_argument("--shapes", nargs="+", default=shapes, help="SAMPLESxHEADSxLENGTHxHEAD_DIM")
    parser.add_argument("--kept", nargs="+", type=float, default=[1.0, 0.5, 0.3, 0.25, 0.1], help="parts of the causal blocks")
    options = parser.parse_args()
    print(json.dumps(dict(device=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda)), flush=True)
    torch.manual_seed(1)
    for shape in options.shapes:
        measure(*map(int, shape.split("x")), options.kept)


if __name__ == "__main__":
    main()
