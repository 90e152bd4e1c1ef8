"""The openings of the two towers: adapters, tokens and checkpoints in the first, embeddings and names in the second."""

import copy
from types import SimpleNamespace

import pytest
import torch

from czsl.errors import DataError


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_class_token_alone_is_that_of_all_tokens(small_clip, images):
    every = small_clip.visual(images, tokens=True)
    assert every.shape == (3, 17, 32)
    torch.testing.assert_close(small_clip.visual(images), every[:, 0], rtol=0, atol=1e-6)


class Recorder:
    """Adapters that keep what they are shown and add a constant a place."""

    def __init__(self):
        self.seen = {}

    def for_pass(self, blocks):
        return self.add

    def trained(self, blocks):
        return []

    def add(self, index, x, onto):
        self.seen[index] = x.clone()
        return onto + 0.1 * (index + 1)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [True, False])
def test_adapters_stand_beside_both_sublayers_on_the_unnormalised_stream(small_clip, images, tokens):
    tower, adapter = small_clip.visual, Recorder()
    found = tower(images, adapter, tokens=tokens)
    x = tower.vit._embeds(images)
    for i, block in enumerate(tower.blocks):  # by hand, with torch's own attention
        kv = block.ln_1(x)
        y = x + block.attn(kv, kv, kv, need_weights=False)[0] + 0.1 * (i + 1)
        length = 1 if i == 1 and not tokens else 17
        torch.testing.assert_close(adapter.seen[i], x[:, :length], rtol=0, atol=1e-5)
        torch.testing.assert_close(adapter.seen[2 + i], y[:, :length], rtol=0, atol=1e-5)
        x = y + block.mlp(block.ln_2(y)) + 0.1 * (2 + i + 1)
    expected = tower.vit.ln_post(x) @ tower.vit.proj
    torch.testing.assert_close(found, expected if tokens else expected[:, 0], rtol=0, atol=1e-5)
    assert sorted(adapter.seen) == [0, 1, 2, 3]


def test_checkpointing_changes_neither_values_nor_gradients(small_clip, images):
    tower = small_clip.visual
    scale = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    dropout = torch.nn.Dropout(0.5)
    calls = []

    def adapter(index, x, onto):
        calls.append(index)
        return onto + dropout(x) * scale[index]

    def run():
        torch.manual_seed(5)
        out = tower(images, SimpleNamespace(for_pass=lambda blocks: adapter, trained=lambda blocks: [scale]))
        (grad,) = torch.autograd.grad(out.square().sum(), scale)
        return out.detach(), grad

    plain = run()
    assert len(calls) == 4
    tower.checkpointing = True
    try:
        again = run()
    finally:
        tower.checkpointing = False
    assert len(calls) == 4 + 8  # computed once more in the backward pass
    assert torch.equal(plain[0], again[0])
    assert torch.equal(plain[1], again[1])
    assert plain[1].abs().min() > 0


@torch.no_grad()
def test_an_empty_batch_goes_through(small_clip):
    empty = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    assert small_clip.visual(small_clip.normalise(empty)).shape == (0, 32)
    assert small_clip.visual(small_clip.normalise(empty), tokens=True).shape == (0, 17, 32)
    assert small_clip.text.encode([]).shape == (0, 32)


@torch.no_grad()
def test_what_stands_behind_the_end_token_changes_nothing(small_clip):
    torch.manual_seed(0)
    text = small_clip.text
    ids, end = text.tokenize(["a photo of wet dog", "old"])
    x = text.embed_tokens(ids)
    padded = torch.cat([x, torch.randn(2, 9, text.width)], dim=1)
    padded[1, int(end[1]) + 1 :] = 3.0
    torch.testing.assert_close(text.encode_embeddings(padded, end), text.encode_embeddings(x, end), rtol=0, atol=1e-5)
    moved = padded.clone()
    moved[0, 2] += torch.randn(text.width)  # while a word in front of it does
    assert (text.encode_embeddings(moved, end) - text.encode_embeddings(padded, end))[0].abs().max() > 1e-3


@torch.no_grad()
def test_prompts_encode_alike_in_chunks_and_in_company(small_clip):
    prompts = [f"a photo of {'very ' * i}wet dog" for i in range(7)]
    whole = small_clip.text.encode(prompts)
    torch.testing.assert_close(small_clip.text.encode(prompts, chunk=2), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(7))


def test_tokens_are_cut_at_the_context_with_the_end_token_last(small_clip):
    text = small_clip.text
    ids, end = text.tokenize(["dog " * 200, "dog"])
    dog = text.tokenizer.encode("dog")[0]
    assert ids.shape == (2, 77)
    assert ids[0].tolist() == [text.start_id, *[dog] * 75, text.end_id]
    assert ids[1].tolist() == [text.start_id, dog, text.end_id, *[0] * 74]
    assert end.tolist() == [76, 2]
    ids, end = text.tokenize(["dog " * 75])  # as long as there is room
    assert (ids.shape, int(end)) == ((1, 77), 76)
    assert (text.start_id, text.end_id) == (49406, 49407)


def test_an_embedding_of_a_name_is_the_mean_of_its_tokens(small_clip):
    text, table = small_clip.text, small_clip.text.token_embedding.weight
    names = ["dog", "faux leather", "one two three four five six seven eight"]
    found = text.name_embeddings(names)
    for row, name in zip(found, names, strict=True):
        ids = text.tokenizer.encode(name)[:6]  # CSP cuts at a context of eight
        torch.testing.assert_close(row, sum(table[i] for i in ids) / len(ids))
    assert len(text.tokenizer.encode(names[2])) == 8


@pytest.mark.parametrize("nameless", ["", " ", "\t"])
def test_a_name_without_a_word_is_refused(small_clip, nameless):
    with pytest.raises(DataError, match=r"name 1 .* has no word"):
        small_clip.text.name_embeddings(["dog", nameless])


@pytest.mark.parametrize("branches", [0, 5])
def test_prompts_with_a_shared_beginning_equal_prompts_written_out(small_clip, branches):
    """Values and gradients of the tree against the plain form, in float64."""
    from czsl.clip.prompt_tree import PromptTree

    text = copy.deepcopy(small_clip.text).double()
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape):
        return torch.randn(*shape, text.width, generator=generator, dtype=torch.float64).requires_grad_()

    parts = [leaf(4), leaf(branches), leaf(9)]
    ends, parents = (torch.randint(0, n, shape, generator=generator) for n, shape in ((9, (17, 2)), (max(branches, 1), (17,))))
    tree = PromptTree(*parts, ends, parents)
    weights = torch.randn(17, text.text_projection.shape[1], generator=generator, dtype=torch.float64)
    results = [text.encode_tree(tree), text.encode_embeddings(*tree.flat())]
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)
    used = [p for p in parts if len(p)]
    gradients = [torch.autograd.grad((r * weights).sum(), used) for r in results]
    for shared, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, plain, rtol=1e-10, atol=1e-11)
    piece = text.encode_tree(tree.part(slice(3, 9)))
    torch.testing.assert_close(piece, results[1][3:9], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("limit", [1 << 25, 0])
def test_several_sets_of_prompts_in_one_pass_equal_each_written_out(small_clip, monkeypatch, limit):
    """Values and gradients of one pass against the plain form, in float64; with and without matrices that add up gradients."""
    from czsl.clip import prompt_tree
    from czsl.clip.prompt_tree import PromptTree, parts_of

    monkeypatch.setattr(prompt_tree, "MAX_HOT", limit)
    text = copy.deepcopy(small_clip.text).double()
    generator = torch.Generator().manual_seed(3)
    leaves, trees = [], []
    for branches, prompts in ((5, 17), (0, 8), (0, 3), (1, 2)):  # some trunks are no whole rows
        parts = [torch.randn(n, text.width, generator=generator, dtype=torch.float64).requires_grad_() for n in (3, branches, 9)]
        ends, parents = (
            torch.randint(0, n, s, generator=generator) for n, s in ((9, (prompts, 2)), (max(branches, 1), (prompts,)))
        )
        trees.append(PromptTree(*parts, ends, parents))
        leaves += [p for p in parts if len(p)]
    weights = torch.randn(30, text.text_projection.shape[1], generator=generator, dtype=torch.float64)
    plain = torch.cat([text.encode_embeddings(*tree.flat()) for tree in trees])
    joint = text.encode_trees(trees)
    torch.testing.assert_close(joint, plain, rtol=1e-12, atol=1e-12)
    pairs = [torch.autograd.grad((x * weights).sum(), leaves) for x in (joint, plain)]
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for rows in (slice(0, 4), slice(15, 26), slice(20, 20), slice(25, 30)):  # the shares of workers, chunks
        torch.testing.assert_close(text.encode_trees(parts_of(trees, rows)), plain[rows], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="same length"):
        text.encode_trees([trees[0], PromptTree(parts[0][:2], *parts[1:], ends, parents)])
