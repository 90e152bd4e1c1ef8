"""A file that is no CLIP for these methods: the error says what it is, and what would work."""

import pytest
import torch
from safetensors.torch import save_file

from czsl.clip.loading import load_clip
from czsl.clip.weights import read_state
from czsl.errors import UsageError


def ones(*names):
    return {name: torch.ones(2, 2) for name in names}


@pytest.mark.parametrize(
    ("names", "what", "fix"),
    [
        (["base_model.model.visual.proj.lora_A.weight", "base_model.model.visual.proj.lora_B.weight"], "a LoRA", "merge"),
        (
            ["vision_model.head.probe", "text_model.head.weight", "logit_bias"],
            "a SigLIP as Hugging Face",
            "hf-hub:timm/ViT-B-16-SigLIP",
        ),
        (["visual.trunk.attn_pool.latent", "text.ln_final.weight", "logit_bias"], "a SigLIP", "--clip ViT-B-16-SigLIP"),
        (["visual.layer1.0.conv1.weight", "visual.attnpool.c_proj.weight", "ln_final.weight"], "a ResNet", "--clip RN50"),
        (
            ["text_model.final_layer_norm.weight", "text_model.embeddings.token_embedding.weight"],
            "only a text tower",
            "whole model",
        ),
        (["token_embedding.weight", "ln_final.weight"], "only a text tower", "whole model"),
        (["vision_model.post_layernorm.weight", "visual_projection.weight"], "only an image tower", "whole model"),
        (["visual.trunk.blocks.0.attn.qkv.weight", "text.ln_final.weight"], "with a tower of timm", "--clip EVA02-B-16"),
        (["image_encoder.model.head.proj", "text_encoder.x"], "MobileCLIP in its own", "--clip MobileCLIP-S1"),
        (["model.diffusion_model.out.weight"], "a part of Stable Diffusion", "--clip ViT-L-14"),
        (["prompt_learner.ctx"], "prompts learned by CoOp", "the CLIP"),
        (["soft_embeddings"], "a public program for compositions", "czsl import-checkpoint"),
        (["layer.weight", "other.bias"], "is not a CLIP ViT in OpenAI's format", "--clip"),
    ],
)
def test_wrong_files_are_told_by_their_names(tmp_path, names, what, fix):
    save_file(ones(*names), tmp_path / "w.safetensors")
    with pytest.raises(UsageError) as error:
        load_clip(str(tmp_path / "w.safetensors"))
    assert what in error.value.what
    assert fix in error.value.fix
    assert error.value.why


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model": ones("a"), "optimizer": {}, "epoch": 3}, "its tensors are in its entry 'model'"),
        ({"model_state_dict": ones("a"), "hyper_parameters": {}}, "PyTorch Lightning"),
        ({"meta": {}, "message_hub": {}}, "MMEngine"),
        ({"epoch": 3, "loss": 0.5}, "but no tensor"),
        ({}, "holds no weights"),
    ],
)
def test_training_checkpoints_of_other_programs(tmp_path, content, told):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UsageError) as error:
        read_state(tmp_path / "w.pt")
    assert told in str(error.value)
    assert error.value.fix


def test_a_checkpoint_of_open_clips_training_is_read(open_clip_model, tmp_path):
    state = {f"module.{k}": v for k, v in open_clip_model.state_dict().items()}
    torch.save(
        {"epoch": 7, "name": "run", "state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}}, tmp_path / "epoch_7.pt"
    )
    clip = load_clip(str(tmp_path / "epoch_7.pt"))
    image = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(clip.visual(image), open_clip_model.encode_image(image), rtol=0, atol=1e-5)


def test_a_folder_without_weights_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip", "vision_config": {}, "text_config": {}}')
    with pytest.raises(UsageError, match="holds no weights"):
        load_clip(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="it holds a LoRA"):
        load_clip(str(tmp_path))
