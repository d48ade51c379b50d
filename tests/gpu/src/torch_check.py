"""Computes calls of operations with PyTorch in bf16. A line of JSON on the standard input names a folder of inputs; files of f32 go
there, and a line of JSON comes back: null, or what went wrong."""
import ctypes
import json
import os
import sys

import torch
import torch.nn.functional as F

device = sys.argv[1]


class Inputs:
    """The inputs of a call by their names; those that gradients are asked of are leaves."""

    def __init__(self, folder, files):
        self.files = {file["name"]: file for file in files}
        self.folder = folder

    def __contains__(self, name):
        return name in self.files

    def __getitem__(self, name):
        file = self.files[name]
        dtype = getattr(torch, file["dtype"])
        with open(os.path.join(self.folder, name), "rb") as bytes_of:
            data = bytearray(bytes_of.read())
        if not data:
            return torch.zeros(file["dims"], dtype=dtype, device=device)
        return torch.frombuffer(data, dtype=dtype).reshape(file["dims"]).to(device)

    def leaves(self, *names):
        return [self[name].requires_grad_() for name in names]


def attention(case, inputs):
    (qkv,) = inputs.leaves("qkv")
    heads, kv_heads = case["heads"], case["kv_heads"]
    head_dim = qkv.shape[1] // (heads + 2 * kv_heads)
    parts = qkv.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], dim=1)
    ends = case["cu_seqlens"] or [i * (len(qkv) // case["batch"]) for i in range(case["batch"] + 1)]
    outs, sums = [], []
    for start, end in zip(ends, ends[1:]):
        if end == start:
            continue
        # (1, heads, rows, head_dim), a sequence at a time.
        q, k, v = (x[start:end].reshape(1, end - start, -1, head_dim).transpose(1, 2) for x in parts)
        grouped = heads != kv_heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"], enable_gqa=grouped)
        outs.append(out.transpose(1, 2).reshape(end - start, -1))
        with torch.no_grad():
            scores = (q @ k.repeat_interleave(heads // kv_heads, dim=1).transpose(2, 3)).float() * head_dim**-0.5
            if case["causal"]:
                scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), float("-inf"))
            sums.append(scores.logsumexp(-1)[0])
    out = torch.cat(outs)
    (dqkv,) = torch.autograd.grad(out, [qkv], inputs["dout"])
    dq, dk, dv = dqkv.split([x.shape[1] for x in parts], dim=1)
    # (batch, heads, queries), where all packed sequences are one batch entry.
    lse = torch.cat(sums, dim=1) if case["cu_seqlens"] else torch.stack(sums)
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


def avg_pool(case, inputs):
    (x,) = inputs.leaves("x")
    n, m = case["grid"], case["pooled"]
    planes = x.reshape(x.shape[0], n, n, x.shape[2]).permute(0, 3, 1, 2)
    y = F.adaptive_avg_pool2d(planes, m).permute(0, 2, 3, 1).reshape(x.shape[0], m * m, x.shape[2])
    (dx,) = torch.autograd.grad(y, [x], inputs["dy"])
    return {"y": y, "dx": dx}


def bias_gelu(case, inputs):
    leaves = inputs.leaves("x", "bias")
    y = F.gelu(leaves[0] + leaves[1], approximate=case["approximate"])
    dx, dbias = torch.autograd.grad(y, leaves, inputs["dy"])
    return {"y": y, "dx": dx, "dbias": dbias}


def column_sum(case, inputs):
    return {"sums": inputs["x"].sum(0), "added": inputs["old"] + inputs["wide"].sum(0)}


def gemm(case, inputs):
    a, b = (inputs[name].t() if turned else inputs[name] for name, turned in zip("ab", case["transposed"]))
    d = a @ b
    if "bias" in inputs:
        d = d + inputs["bias"]
    if case["gelu"]:
        d = F.gelu(d, approximate="tanh")
    return {"d": inputs["old"].float() + d.float() if "old" in inputs else d}


def norm(case, inputs):
    x, weight = inputs.leaves("x", "weight")
    leaves, size = [x, weight], x.shape[1:]
    total = x + inputs["residual"] if "residual" in inputs else x
    if "bias" in inputs:
        leaves += inputs.leaves("bias")
        y = F.layer_norm(total, size, weight, leaves[2], case["eps"])
    else:
        y = F.rms_norm(total, size, weight, case["eps"])
    outputs, gradients = [y], [inputs["dy"]]
    if "residual" in inputs:
        outputs.append(total)
        gradients.append(inputs["dresidual"])
    found = torch.autograd.grad(outputs, leaves, gradients)
    wide = total.detach().float()
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean if "bias" in inputs else wide
    results = {"y": y, "dx": found[0], "dweight": found[1], "sum": total, "mean": mean}
    results["inverse"] = (centred.square().mean(-1) + case["eps"]).rsqrt()
    return results | ({"dbias": found[2]} if "bias" in inputs else {})


def swiglu(case, inputs):
    (gate_up,) = inputs.leaves("gate_up")
    gate, up = gate_up.chunk(2, dim=1)
    h = F.silu(gate) * up
    (dgate_up,) = torch.autograd.grad(h, [gate_up], inputs["dh"])
    return {"h": h, "dgate_up": dgate_up}


def rope(case, inputs):
    leaves = inputs.leaves("qkv", "bias")
    rows, head_dim = len(leaves[0]), case["head_dim"]
    # As transformers does: tables in the type of the network.
    positions = inputs["positions"].long()
    cos, sin = (torch.cat([table, table], dim=1).bfloat16()[positions].unsqueeze(1) for table in (inputs["cos"], inputs["sin"]))
    heads = (leaves[0] + leaves[1]).reshape(rows, -1, head_dim)
    rotated, rest = heads.split([case["rotated_heads"], heads.shape[1] - case["rotated_heads"]], dim=1)
    left, right = rotated.chunk(2, dim=2)
    rotated = rotated * cos + torch.cat([-right, left], dim=2) * sin
    y = torch.cat([rotated, rest], dim=1).reshape(rows, -1)
    dqkv, dbias = torch.autograd.grad(y, leaves, inputs["dy"])
    return {"y": y, "dqkv": dqkv, "dbias": dbias}


def embedding(case, inputs):
    leaves = inputs.leaves("table", "visual")
    sources = inputs["sources"].long()
    tokens = F.embedding(sources.clamp(min=0), leaves[0], padding_idx=case["padding"])
    is_visual = (sources < 0).unsqueeze(1)
    y = torch.where(is_visual, leaves[1][(-1 - sources).clamp(min=0)], tokens) if len(leaves[1]) else tokens
    dtable, dvisual = torch.autograd.grad(y, leaves, inputs["dy"], allow_unused=True)
    dvisual = torch.zeros_like(leaves[1]) if dvisual is None else dvisual
    return {"y": y, "dtable": inputs["old"] + dtable.float(), "dvisual": dvisual}


def gather_rows(case, inputs):
    indices = inputs["indices"].long().unsqueeze(1)
    return {"to": inputs["from"][indices[:, 0].clamp(min=0)].masked_fill(indices < 0, 0.0)}


def patchify(case, inputs):
    pixels, edge = inputs["pixels"], case["edge"]
    mean, deviation = (torch.tensor(case[name], device=device) for name in ("mean", "deviation"))
    batch, height, width, channels = pixels.shape
    images = ((pixels.float() / 255 - mean) / deviation).bfloat16()
    grid = images.reshape(batch, height // edge, edge, width // edge, edge, channels)
    rows = grid.permute(0, 1, 3, 5, 2, 4).reshape(-1, channels * edge * edge)
    return {"rows": F.pad(rows, (0, -rows.shape[1] % 8))}


def adamw(case, inputs):
    sizes = case["ranges"]
    parts = [part.clone().requires_grad_() for part in inputs["w"].split(sizes)]
    groups = [{"params": [part], "weight_decay": decay} for part, decay in zip(parts, (case["decay"], 0.0))]
    options = {"betas": case["betas"], "eps": case["eps"], "fused": True}
    optimizer = torch.optim.AdamW(groups, lr=1.0, **options)
    ema, norms = inputs["w"], []
    for rate, grad in zip(case["rates"], inputs["grads"], strict=True):
        for part, part_grad in zip(parts, (grad * inputs["scale"]).split(sizes)):
            part.grad = part_grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(parts, case["max_norm"])
        if not norm.isfinite():
            optimizer.zero_grad(set_to_none=False)
            continue
        norms.append(norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        ema = case["ema"] * ema + (1 - case["ema"]) * torch.cat([part.detach() for part in parts])
    state = [optimizer.state[part] for part in parts]
    w = torch.cat([part.detach() for part in parts])
    return {
        "w": w,
        "m": torch.cat([of["exp_avg"] for of in state]),
        "v": torch.cat([of["exp_avg_sq"] for of in state]),
        "ema": ema,
        "copy": w.bfloat16(),
        "grad": torch.cat([part.grad for part in parts]),
        "norms": torch.stack(norms),
    }


def cross_entropy(case, inputs):
    return label_head(case, inputs) if "states" in inputs else given_logits(case, inputs)


def given_logits(case, inputs):
    (logits,) = inputs.leaves("logits")
    labels = inputs["labels"].long()
    labelled = labels != case["ignore"]
    losses = F.cross_entropy(logits.float(), labels, ignore_index=case["ignore"], reduction="none")
    z_losses = case["z_loss"] * torch.logsumexp(logits.float(), -1).square() * labelled
    total = (losses + z_losses).sum() * case["loss_scale"] * inputs["scale"]
    (dlogits,) = torch.autograd.grad(total, [logits])
    hits = labelled & (logits.argmax(-1) == labels)
    stats = torch.stack([losses, z_losses, labelled.float(), hits.float()], dim=1).detach()
    return {
        "dlogits": dlogits,
        "stats": stats,
        "sums": stats[:, :2].sum(0),
        "counts": stats[:, 2:].sum(0),
    }


def label_head(case, inputs):
    states, weight = inputs.leaves("states", "weight")
    labels = inputs["labels"].long()
    labelled = labels != case["ignore"]
    logits = F.linear(states[labelled], weight).float()
    losses = F.cross_entropy(logits, labels[labelled], reduction="none")
    dstates, dweight = torch.autograd.grad(losses.mean(), [states, weight])
    return {"losses": losses, "dstates": dstates, "dweight": inputs["old"].float() + dweight.float()}


def elementwise(case, inputs):
    left, right, wide = inputs["left"], inputs["right"], inputs["wide"]
    added = left.clone()
    added += right
    return {
        "sum": left + right,
        "added": added,
        "narrowed": wide.bfloat16(),
        "widened": left.float(),
        "filled": torch.full_like(wide, 0.25),
    }


OPERATIONS = [
    attention, avg_pool, bias_gelu, column_sum, gemm, norm, swiglu, rope,
    embedding, gather_rows, patchify, adamw, cross_entropy, elementwise,
]  # fmt: skip


def write(folder, name, tensor):
    tensor = tensor.detach().float().cpu().contiguous()
    with open(os.path.join(folder, name + ".result"), "wb") as file:
        file.write(ctypes.string_at(tensor.data_ptr(), tensor.numel() * 4) if tensor.numel() else b"")


def answer(request):
    operation = {operation.__name__: operation for operation in OPERATIONS}[request["op"]]
    results = operation(request["settings"], Inputs(request["dir"], request["inputs"]))
    for name in request["results"]:
        write(request["dir"], name, results[name])


for line in sys.stdin:
    error = None
    try:
        answer(json.loads(line))
        if device != "cpu":
            # The memory is for others between calls.
            torch.cuda.empty_cache()
    except Exception as exception:
        error = f"{type(exception).__name__}: {exception}"
    print(json.dumps(error), flush=True)
