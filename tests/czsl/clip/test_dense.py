"""Features of patches from the image tower's last values."""

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def images(small_clip):
    return torch.rand(3, 3, small_clip.image_size, small_clip.image_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_image_feature_is_that_of_forward(small_clip, images):
    torch.testing.assert_close(small_clip.visual.dense(images)[0], small_clip.visual(images))


@torch.no_grad()
def test_a_patch_that_attends_to_itself_alone_has_its_own_value(small_clip, images):
    """torch's own attention under a mask that leaves every patch only itself, then the last norm and projection."""
    tower = small_clip.visual
    x = tower.embed(images)
    for i in range(len(tower.blocks) - 1):
        x = tower.block(i, x, None)
    blk = tower.blocks[-1]
    tokens = blk.ln_1(x)
    alone = torch.zeros(x.shape[1], x.shape[1]).masked_fill(~torch.eye(x.shape[1], dtype=torch.bool), -torch.inf)
    own, _ = blk.attn(tokens, tokens, tokens, attn_mask=alone, need_weights=False)
    torch.testing.assert_close(tower.dense(images)[1], tower.project(own)[:, 1:], rtol=1e-5, atol=1e-5)

    with_residual = x + own
    with_residual = with_residual + blk.mlp(blk.ln_2(with_residual))
    kept = tower.dense(images, residual_ffn=True)[1]
    torch.testing.assert_close(kept, tower.project(with_residual)[:, 1:], rtol=1e-5, atol=1e-5)
    assert F.cosine_similarity(kept, tower.dense(images)[1], dim=-1).min() < 0.99


@torch.no_grad()
def test_patches_come_row_by_row(small_clip):
    """A change in the top right corner moves the value of that patch most where the tower before the last block is left out."""
    tower, size = small_clip.visual, small_clip.image_size
    patch = int(tower.vit.patch_size[0])
    image = torch.zeros(1, 3, size, size)
    changed = image.clone()
    changed[..., :patch, -patch:] = 1
    difference = (tower.embed(changed) - tower.embed(image))[0, 1:].norm(dim=-1)
    assert int(difference.argmax()) == size // patch - 1
    assert int((difference > 1e-6).sum()) == 1
