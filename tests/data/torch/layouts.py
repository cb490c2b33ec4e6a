"""Writes layouts.bin and layouts.json; see README.md."""
import json, torch
from collections import OrderedDict
pool = torch.arange(48, dtype=torch.bfloat16)
grid = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8 - 1
cube = torch.arange(24, dtype=torch.float16).reshape(2, 3, 4)
layer = torch.nn.Linear(3, 2)
with torch.no_grad():
    layer.weight.copy_(torch.arange(6).reshape(2, 3)); layer.bias.copy_(torch.tensor([-0.5, 7.0]))
tagged = torch.nn.Parameter(torch.tensor([1.5, 2.5])); tagged.tag = "a"
dict_ = OrderedDict(
    plain=grid, turned=grid.t(), window=grid[1:3, 1:5], every_second=grid[::2, ::2], offset=pool[10:40].reshape(5, 6),
    shared=pool[8:16], expanded=pool[3:6].reshape(3, 1).expand(3, 4), permuted=cube.permute(2, 0, 1), scalar=torch.tensor(3.25),
    empty=torch.zeros(0, 4), parameter=torch.nn.Parameter(cube[0]), tagged=tagged, index=torch.arange(-2, 3, dtype=torch.int32))
dict_.update(layer.state_dict())
dict_._metadata = layer.state_dict()._metadata
torch.save(dict_, "layouts.bin")
expect = {name: {"shape": list(t.shape), "values": [float(v) for v in t.flatten()]} for name, t in dict_.items()}
json.dump(expect, open("layouts.json", "w"))
