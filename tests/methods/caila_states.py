"""Random checkpoints in the form in which the public CAILA program saves them, and plain arithmetic on their tensors.

The state is what its model's ``state_dict()`` holds: names of Hugging Face's CLIP below ``clip_model``, adapters in its layers.
"""

import math

import torch
from torch.nn import functional as F

BASE = {"vision": (768, 12, 32, 224), "text": (512, 12), "dim": 512}
LARGE = {"vision": (1024, 24, 14, 224), "text": (768, 12), "dim": 768}
SMALL = {"vision": (128, 4, 16, 64), "text": (64, 3), "dim": 32}


def random_state(size, text_adapters=True, seed=0):
    """Tensors of all names, none of them at zero."""
    make = torch.Generator().manual_seed(seed)
    state = {}

    def put(name, *shape, scale=None):
        scale = (shape[-1] ** -0.5 if len(shape) > 1 else 0.1) if scale is None else scale
        state[name] = scale * torch.randn(*shape, generator=make)

    def linear(name, out, inside):
        put(f"{name}.weight", out, inside)
        put(f"{name}.bias", out)

    def norm(name, width):
        put(f"{name}.weight", width)
        state[f"{name}.weight"] += 1
        put(f"{name}.bias", width)

    (V, layers, patch, side), (W, text_layers), D = size["vision"], size["text"], size["dim"]
    for tower, width, depth in (("text", W, text_layers), ("vision", V, layers)):
        for i in range(depth):
            root = f"clip_model.{tower}_model.encoder.layers.{i}"
            for name in "qkv":
                linear(f"{root}.self_attn.{name}_proj", width, width)
            linear(f"{root}.self_attn.out_proj", width, width)
            norm(f"{root}.layer_norm1", width)
            norm(f"{root}.layer_norm2", width)
            linear(f"{root}.mlp.fc1", 4 * width, width)
            linear(f"{root}.mlp.fc2", width, 4 * width)
            modes = ["attr", "obj"] + (["mixture"] if i >= depth // 2 else []) if tower == "vision" else ["pair", "obj", "attr"]
            for adapter in ("adapter1", "adapter2"):
                for mode in modes if tower == "vision" or text_adapters else []:
                    linear(f"{root}.{adapter}.{mode}.down_sampler", width // 4, width)
                    linear(f"{root}.{adapter}.{mode}.up_sampler", width, width // 4)
    tokens = (side // patch) ** 2 + 1
    put("clip_model.vision_model.embeddings.class_embedding", V)
    put("clip_model.vision_model.embeddings.patch_embedding.weight", V, 3, patch, patch, scale=0.5 / patch)
    put("clip_model.vision_model.embeddings.position_embedding.weight", tokens, V, scale=0.1)
    state["clip_model.vision_model.embeddings.position_ids"] = torch.arange(tokens)[None]
    norm("clip_model.vision_model.pre_layrnorm", V)
    norm("clip_model.vision_model.post_layernorm", V)
    put("clip_model.text_model.embeddings.token_embedding.weight", 49408, W, scale=0.5)
    put("clip_model.text_model.embeddings.position_embedding.weight", 77, W, scale=0.1)
    state["clip_model.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    norm("clip_model.text_model.final_layer_norm", W)
    put("clip_model.visual_projection.weight", D, V)
    put("clip_model.text_projection.weight", D, W)
    state["clip_model.logit_scale"] = torch.tensor(4.6)
    state["attr_logit_scale"], state["obj_logit_scale"] = torch.tensor(3.9), torch.tensor(4.1)
    return state


class Plain:
    """The forward pass of a state, one operation after the other, without a module of this project."""

    def __init__(self, state):
        self.state = {k.removeprefix("clip_model."): v for k, v in state.items()}

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", torch.zeros(()))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def quick(self, x):
        return x * torch.sigmoid(1.702 * x)

    def depth(self, tower):
        return 1 + max(int(k.split(".")[3]) for k in self.state if k.startswith(f"{tower}_model.encoder"))

    def adapter(self, name, mode, h):
        if f"{name}.{mode}.down_sampler.weight" not in self.state:
            return torch.zeros_like(h)
        z = {
            m: self.quick(self.linear(f"{name}.{m}.down_sampler", h))
            for m in {mode, *(("attr", "obj") if mode == "mixture" else ())}
        }
        if mode != "mixture":
            return self.linear(f"{name}.{mode}.up_sampler", z[mode])
        fused = self.linear(f"{name}.mixture.up_sampler", (z["mixture"] + z["attr"] + z["obj"]) / 3)
        return (fused + self.linear(f"{name}.attr.up_sampler", z["attr"]) + self.linear(f"{name}.obj.up_sampler", z["obj"])) / 3

    def layer(self, tower, i, mode, x_LV):
        root = f"{tower}_model.encoder.layers.{i}"
        h = self.norm(f"{root}.layer_norm1", x_LV)
        q, k, v = (self.linear(f"{root}.self_attn.{n}_proj", h) for n in "qkv")
        out = []
        for a in range(0, h.shape[-1], 64):
            scores = q[:, a : a + 64] @ k[:, a : a + 64].T / 8
            if tower == "text":
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            out.append(scores.softmax(-1) @ v[:, a : a + 64])
        h = self.linear(f"{root}.self_attn.out_proj", torch.cat(out, dim=-1))
        x_LV = x_LV + (h + self.adapter(f"{root}.adapter1", mode, h))
        h = self.linear(f"{root}.mlp.fc2", self.quick(self.linear(f"{root}.mlp.fc1", self.norm(f"{root}.layer_norm2", x_LV))))
        return x_LV + (h + self.adapter(f"{root}.adapter2", mode, h))

    def image(self, image_3SS):
        """Features of the fused, the attribute and the object stream, [3, D], of one normalised image."""
        root = "vision_model.embeddings"
        patch = self.state[f"{root}.patch_embedding.weight"]
        cells = F.conv2d(image_3SS[None], patch, stride=patch.shape[-1])[0].flatten(1).T
        x_LV = torch.cat([self.state[f"{root}.class_embedding"][None], cells]) + self.state[f"{root}.position_embedding.weight"]
        x_LV = self.norm("vision_model.pre_layrnorm", x_LV)
        depth = self.depth("vision")
        streams, tops = [], []
        for mode in ("attr", "obj"):
            stream = x_LV
            for i in range(depth):
                if i == depth // 2:
                    streams.append(stream)
                stream = self.layer("vision", i, mode, stream)
            tops.append(stream[0])
        fused = torch.cat(streams)
        for i in range(depth // 2, depth):
            fused = self.layer("vision", i, "mixture", fused)
        tops.insert(0, (fused[0] + fused[len(x_LV)]) / 2)
        return self.linear("visual_projection", self.norm("vision_model.post_layernorm", torch.stack(tops)))

    def text(self, ids, mode):
        """The feature [D] of one prompt that ends with its end token."""
        root = "text_model.embeddings"
        x = self.state[f"{root}.token_embedding.weight"][ids] + self.state[f"{root}.position_embedding.weight"][: len(ids)]
        for i in range(self.depth("text")):
            x = self.layer("text", i, mode, x)
        return self.linear("text_projection", self.norm("text_model.final_layer_norm", x[-1]))
