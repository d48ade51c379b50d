"""Times PyTorch on a GPU by its events: a list of calls in `request.json`, a list of seconds out. On a CPU, where the tests see
that it does what it is asked for, each runs once."""
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

request = json.load(open(sys.argv[1]))
device = request["device"]
ON_GPU = device != "cpu"
WARM_UP_RUNS, RUNS = (10, 50) if ON_GPU else (0, 1)
if ON_GPU:
    torch.cuda.set_device(device)
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def synchronize():
    if ON_GPU:
        torch.cuda.synchronize()


def median(work):
    if not ON_GPU:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
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
                    synchronize()
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


def silu_times(gate_up):
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def norm_after_sum(norm):
    def run(x, residual, *gains):
        total = x + residual
        return norm(total, *gains), total

    return run


def rotate(cos, sin, rotated_heads):
    def run(qkv, bias):
        heads = (qkv + bias).reshape(len(qkv), -1, 2 * cos.shape[1])
        rotated, rest = heads.split([rotated_heads, heads.shape[1] - rotated_heads], dim=1)
        left, right = rotated.chunk(2, dim=2)
        c, s = cos.unsqueeze(1), sin.unsqueeze(1)
        rotated = torch.cat([left * c - right * s, right * c + left * s], dim=2)
        return torch.cat([rotated, rest], dim=1).reshape(len(qkv), -1)

    return run


def patches(edge):
    def run(pixels):
        batch, height, width, channels = pixels.shape
        images = (pixels.float() * (2 / 255) - 1).bfloat16()
        grid = images.reshape(batch, height // edge, edge, width // edge, edge, channels)
        rows = grid.permute(0, 1, 3, 5, 2, 4).reshape(-1, channels * edge * edge)
        return F.pad(rows, (0, -rows.shape[1] % 8))

    return run


def formula_of(call):
    """What is computed, of what, and whether it has a backward."""
    name, rows, cols, other = (call[key] for key in ("name", "rows", "cols", "other"))
    some = lambda count: [numbers(rows, cols) for _ in range(count)]
    plain = lambda *dims: numbers(*dims).detach()
    if name in ("bias_gelu", "bias_gelu_tanh"):
        approximate = "none" if name == "bias_gelu" else "tanh"
        return lambda x, bias: F.gelu(x + bias, approximate=approximate), [*some(1), numbers(cols)], True
    if name == "rms_norm":
        norm = norm_after_sum(lambda x, weight: F.rms_norm(x, (cols,), weight, 1e-6))
        return norm, [*some(2), numbers(cols)], True
    if name == "layer_norm":
        return lambda x, weight, bias: F.layer_norm(x, (cols,), weight, bias, 1e-6), [*some(1), numbers(cols), numbers(cols)], True
    if name == "swiglu":
        return silu_times, [numbers(rows, 2 * cols)], True
    if name == "rope":
        heads, kv_heads = call["heads"]
        angles = torch.arange(rows, device=device).remainder(other).outer(1e6 ** (-torch.arange(0, 1, 2 / cols, device=device)))
        width = (heads + 2 * kv_heads) * cols
        run = rotate(angles.cos().bfloat16(), angles.sin().bfloat16(), heads + kv_heads)
        return run, [numbers(rows, width), numbers(width)], True
    if name == "embedding":
        indices = torch.randperm(other, device=device)[:rows]
        return lambda table: F.embedding(indices, table), [numbers(other, cols)], True
    if name == "gather_rows":
        indices = torch.randperm(other, device=device)[:rows]
        return lambda x: x[indices], [plain(other, cols)], False
    if name == "patchify":
        pixels = torch.randint(256, (rows, other * cols, other * cols, 3), device=device, dtype=torch.uint8)
        return patches(cols), [pixels], False
    if name == "add":
        return lambda left, right: left + right, [plain(rows, cols), plain(rows, cols)], False
    if name == "widen":
        return lambda x: x.float(), [plain(rows, cols)], False
    if name == "narrow":
        return lambda x: x.bfloat16(), [plain(rows, cols).float()], False
    if name == "fill":
        return lambda x: x.fill_(0.0), [plain(rows, cols).float()], False
    sys.exit("no formula " + name)


def formulas(call):
    formula, inputs, has_backward = formula_of(call)

    def compiled():
        import torch._functorch.config

        # The graph of a compiled forward is gone through again and again here.
        torch._functorch.config.donated_buffer = False
        return torch.compile(formula, dynamic=False)

    # On a CPU, compiling takes longer than the tests.
    ways = {"eager": lambda: formula} | ({"compiled": compiled} if ON_GPU else {})
    times = {"forward": {}, "backward": {}}
    for way, make in ways.items():
        try:
            run = make()
            out = run(*inputs)
            synchronize()
            times["forward"][way] = median(lambda: run(*inputs))
            if has_backward:
                outs = out if isinstance(out, tuple) else (out,)
                gradients = [torch.rand_like(x) for x in outs]
                back = lambda: torch.autograd.grad(outs, inputs, gradients, retain_graph=True)
                back()
                synchronize()
                times["backward"][way] = median(back)
        except Exception as error:  # no compiler, too little memory: this is information, nothing is held against it
            print(f"  {call['name']} {way} cannot: {(str(error).splitlines() or [''])[0]}", file=sys.stderr)
    torch.compiler.reset()
    return times


def adamw(call):
    # In parameters of the size that those of a network have.
    sizes = [1 << 24] * (call["parameters"] >> 24) + [call["parameters"] % (1 << 24)]
    make = lambda value: [torch.full((size,), value, device=device) for size in sizes if size > 0]
    parameters, gradients = make(0.5), make(1e-3)
    copies = [parameter.bfloat16() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient
    optimizer = torch.optim.AdamW(parameters, lr=5e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def whole():
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_zero_(gradients)
        torch._foreach_copy_(copies, parameters)

    return {"whole": median(whole), "step": median(optimizer.step)}


def label_head(call):
    rows, hidden, vocab, label_rows = (call[key] for key in ("rows", "hidden", "vocab", "label_rows"))
    states, weight = numbers(rows, hidden), numbers(vocab, hidden)
    at = torch.arange(rows, device=device)
    has_label = (at + 1) * label_rows // rows > at * label_rows // rows
    labels = torch.where(has_label, at * 37 % vocab, -1)

    def run():
        loss = F.cross_entropy(F.linear(states, weight), labels, ignore_index=-1)
        return torch.autograd.grad(loss, [states, weight])

    # What libraries take once is not counted.
    gradients = run()
    synchronize()
    gradient_bytes = sum(gradient.numel() * gradient.element_size() for gradient in gradients)
    del gradients
    peak = 0
    if ON_GPU:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        synchronize()
        peak = torch.cuda.max_memory_allocated() - before - gradient_bytes
    return {"seconds": median(run), "peak_bytes": float(peak)}


answers = []
for operation in (attention, gemm, formulas, adamw, label_head):
    for call in request["request"].get(operation.__name__, []):
        answers.append(operation(call))
        if ON_GPU:
            # A call has the memory of those before it.
            torch.cuda.empty_cache()
json.dump(answers, open(sys.argv[2], "w"))
