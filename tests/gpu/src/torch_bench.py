"""Times PyTorch on a GPU by its events: a list of calls in `request.json`, a list of seconds out."""
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

WARM_UP_RUNS, RUNS = 10, 50
request = json.load(open(sys.argv[1]))
device = request["device"]
torch.cuda.set_device(device)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def median(work):
    pairs = []
    for run in range(WARM_UP_RUNS + RUNS):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        work()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) / 1000.0 for start, end in pairs[WARM_UP_RUNS:])
    return times[round((len(times) - 1) * 0.5)]


def numbers(*dims):
    return (torch.rand(dims, device=device) * 2 - 1).to(torch.bfloat16).requires_grad_()


def attention(call):
    q = numbers(call["batch"], call["heads"], call["len"], call["head_dim"])
    k, v = (numbers(call["batch"], call["kv_heads"], call["len"], call["head_dim"]) for _ in range(2))
    dout = numbers(*q.shape).detach()
    grouped = call["heads"] != call["kv_heads"]
    group = call["heads"] // call["kv_heads"]
    # Key heads are shared where the backend can; else they are repeated beforehand, which is not timed.
    ways = {"": (k, v, grouped)}
    if grouped:
        repeated = [x.detach().repeat_interleave(group, dim=1).requires_grad_() for x in (k, v)]
        ways[", heads repeated"] = (*repeated, False)
    times = {"forward": {}, "backward": {}}
    for name, backend in BACKENDS.items():
        for way, (keys, values, enable_gqa) in ways.items():
            with sdpa_kernel(backend):
                run = lambda: F.scaled_dot_product_attention(
                    q, keys, values, is_causal=call["causal"], enable_gqa=enable_gqa
                )
                try:
                    out = run()
                    back = lambda: torch.autograd.grad(out, (q, keys, values), dout, retain_graph=True)
                    back()
                    torch.cuda.synchronize()
                except Exception as error:  # a backend that is not there, or an argument that an old PyTorch does not know
                    print(f"  {name}{way} cannot: {str(error).splitlines()[0]}", file=sys.stderr)
                    continue
                times["forward"][name + way] = median(run)
                times["backward"][name + way] = median(back)
    return times


def gemm(call):
    m, n, k = call["m"], call["n"], call["k"]
    if not call["weight_gradient"]:
        x, weight, bias = numbers(m, k).detach(), numbers(n, k).detach(), numbers(n).detach()
        return {"linear": median(lambda: F.linear(x, weight, bias if call["bias"] else None))}
    # dy and x as they come, (k, m) and (k, n). In bf16 nothing is added, which is less work than ours.
    dy, x = numbers(k, m).detach(), numbers(k, n).detach()
    return {"matmul to bf16, nothing added": median(lambda: dy.t() @ x)}


answers = []
for call in request["request"].get("attention", []):
    answers.append(attention(call))
for call in request["request"].get("gemm", []):
    answers.append(gemm(call))
json.dump(answers, open(sys.argv[2], "w"))
