"""Computes one call of an operation with PyTorch in bf16: `request.json` and files of bf16 in, files of f32 out."""
import ctypes
import json
import os
import sys

import torch
import torch.nn.functional as F

request = json.load(open(sys.argv[1]))
device, folder = request["device"], request["dir"]
case = request["request"]["case"]


def read(name, dims):
    with open(os.path.join(folder, name), "rb") as file:
        data = bytearray(file.read())
    if not data:
        return torch.zeros(dims, dtype=torch.bfloat16, device=device).requires_grad_()
    return torch.frombuffer(data, dtype=torch.bfloat16).reshape(dims).to(device).requires_grad_()


def write(name, tensor):
    tensor = tensor.detach().float().cpu().contiguous()
    with open(os.path.join(folder, name + ".result"), "wb") as file:
        file.write(ctypes.string_at(tensor.data_ptr(), tensor.numel() * 4) if tensor.numel() else b"")


def attention(q, k, v):
    # (batch, heads, rows, head_dim)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"], enable_gqa=grouped)


def packed_attention(q, k, v):
    # (rows, heads, head_dim), a sequence at a time.
    ends = case["cu_seqlens"]
    parts = []
    for start, end in zip(ends, ends[1:]):
        if end > start:
            part = [x[start:end].transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
            parts.append(attention(*part).squeeze(0).transpose(0, 1))
    return torch.cat(parts)


inputs = {file["name"]: read(file["name"], file["dims"]) for file in request["request"]["inputs"]}
if case["op"] == "attention":
    leaves = [inputs[name] for name in ("q", "k", "v")]
    results = [(packed_attention if case["cu_seqlens"] is not None else attention)(*leaves)]
    results += torch.autograd.grad(results[0], leaves, inputs["dout"])
elif case["op"] == "avg_pool":
    x, n, m = inputs["x"], case["grid"], case["pooled"]
    planes = x.reshape(x.shape[0], n, n, x.shape[2]).permute(0, 3, 1, 2)
    y = F.adaptive_avg_pool2d(planes, m).permute(0, 2, 3, 1).reshape(x.shape[0], m * m, x.shape[2])
    results = [y, *torch.autograd.grad(y, [x], inputs["dy"])]
elif case["op"] == "bias_gelu":
    leaves = [inputs["x"], inputs["bias"]]
    y = F.gelu(leaves[0] + leaves[1], approximate=case["approximate"])
    results = [y, *torch.autograd.grad(y, leaves, inputs["dy"])]
elif case["op"] == "column_sum":
    results = [inputs["x"].sum(0)]
elif case["op"] == "gemm":
    a, b = (inputs[name].t() if turned else inputs[name] for name, turned in zip("ab", case["transposed"]))
    d = a @ b
    if "bias" in inputs:
        d = d + inputs["bias"]
    if case["gelu"]:
        d = F.gelu(d, approximate="tanh")
    results = [inputs["old"].float() + d.float() if "old" in inputs else d]
else:
    sys.exit("no operation " + case["op"])
for name, tensor in zip(case["results"], results, strict=True):
    write(name, tensor)
json.dump(True, open(sys.argv[2], "w"))
