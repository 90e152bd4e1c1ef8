"""CoOp: what is trained, and that it starts as CLIP's own prompts."""

import torch
from torch.nn import functional as F

from methods.building import build


def test_it_starts_as_plain_prompts_and_trains_three_words(small_space, small_clip):
    method = build("coop", small_space, small_clip, {}).eval()
    assert {k: tuple(v.shape) for k, v in method.named_parameters()} == {"prompts.context.pair": (3, 64)}
    assert list(method.state_dict()) == ["prompts.context.pair"]
    pairs = torch.tensor([[0, 0], [1, 1], [3, 4]])  # the first two are words of one token
    texts = method.encode_compositions(pairs).pair
    plain = small_clip.text.encode(["a photo of wet dog", "a photo of dry cat", "a photo of old apple"])
    torch.testing.assert_close(texts, plain, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_context_moves_all_texts_and_names_stay(small_space, small_clip):
    method = build("coop", small_space, small_clip, {}).eval()
    pairs = torch.tensor([[0, 0], [1, 1]])
    before = method.encode_compositions(pairs).pair
    method.prompts.context["pair"] += 0.1 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    after = method.encode_compositions(pairs).pair
    assert (F.cosine_similarity(before, after) < 0.9999).all()
    ids, end = small_clip.text.tokenize(["a photo of wet dog"])
    x = small_clip.text.embed_tokens(ids).clone()
    x[0, 1:4] = method.prompts.context["pair"]  # the words written out
    torch.testing.assert_close(after[:1], F.normalize(small_clip.text.encode_embeddings(x, end), dim=-1), atol=1e-5, rtol=1e-5)
