"""Whole trainings of `released` against the public programs' loops: two epochs of five steps with a validation after each, in float64.

The plain loops and forward passes are in public_loops.py; the plain forward passes are tied to numbers of the public programs at the end.
"""

import copy
import json

import numpy as np
import pytest
import torch
from public_loops import Draws, PlainClusPro, PlainCSP, PlainMSCI, PlainTroika, PublicLoop

from cluster.work.comm import Group
from cluster.work.trainer import Trainer
from cluster.work.training import train_worker
from czsl.clip.loading import load_clip
from czsl.data.augment import augment, id_keys
from czsl.data.batches import epoch_batches
from czsl.data.images import decode
from czsl.data.table import open_data
from czsl.runs import checkpoint
from methods import from_reference
from methods.building import build
from methods.clus_pro import contrast as clus_pro_contrast
from methods.clus_pro.prototypes import Prototypes
from methods.method import Method
from methods.parts import branches

CLOSE = {"rtol": 1e-8, "atol": 1e-8}
KEPT = {"rtol": 1e-6, "atol": 1e-6}  # features that are kept are kept in float32
ADAPTED = {"adapter_dim": 4, "lr": 2e-3, "lr_step": 1, "augment": False}
MSCI = {"low_blocks": 2, "high_blocks": 2}
# What each public loop does between steps and epochs, and settings in which two epochs show it.
LOOPS = {
    "csp": (PlainCSP, {"scheduler_steps": None, "keep_last": True}, {"lr": 0.02, "augment": False}),
    "troika": (PlainTroika, {"train_once": True}, {**ADAPTED, "traction_heads": 2}),
    "msci": (PlainMSCI, {"train_once": True}, {**ADAPTED, **MSCI, "stage1_heads": 2, "stage2_heads": 2}),
    "clusPro": (PlainClusPro, {"scheduler_steps": 2}, {**ADAPTED, "lr_step": 2}),
}
RATES = {
    "csp": ("attr_dropout",),
    "troika": ("attr_dropout", "adapter_dropout", "head_dropout", "traction_dropout"),
    "msci": ("attr_dropout", "adapter_dropout", "head_dropout", "aggregator_dropout", "stage1_dropout", "stage2_dropout"),
    "clusPro": ("attr_dropout", "adapter_dropout", "head_dropout"),
}


class Sides:
    """A run of ours and the public loop beside it, from the same weights, none of which is at its initial value."""

    def __init__(self, method, make_run, monkeypatch, **settings):
        self.plain_model, self.loop, own = LOOPS[method]
        fixed = {"method": method, "preset": "released", "precision": "float64", "batch": 18, "epochs": 2, "clip": "tiny"}
        fixed |= {**own, **settings}
        self.run = make_run(**fixed)
        self.config, self.monkeypatch = self.run.config, monkeypatch
        self.data = open_data(self.config.data)
        self.space = self.data.space
        torch.manual_seed(0)
        clip = load_clip(self.config.clip)
        self.start = build(method, self.space, clip, self.config.model).double()
        sizes = {len(self.space.train_pairs), self.space.num_attributes, self.space.num_objects}
        assert len(sizes) == 3, sizes  # masks of the branches are told apart by their number of texts
        with torch.no_grad():
            for name, parameter in self.start.named_parameters():
                parameter.add_((0.02 if "table" in name or "context" in name else 0.05) * torch.randn_like(parameter))
        self._save_start()
        self.draws = Draws((clip.image_size // int(clip.architecture["patch"])) ** 2 + 1)

    def _save_start(self):
        m = self.start
        state = {
            "step": 0, "epoch": 0, "place": 0, "best_auc": -1.0, "method": m.name, "clip_sha256": m.clip.sha256,
            "clip": m.clip.architecture, "data_sha256": self.data.sha256, "from": {},
            "space": {"attributes": list(self.space.attributes), "objects": list(self.space.objects)},
        }  # fmt: skip
        checkpoint.save(self.run.start, checkpoint.Checkpoint(m.state_dict(), {}, state))

    def pixels(self, name):
        split = self.data.split(name)
        return torch.stack([self.start.prepare(decode(split.image_bytes(i)), split.ids[i])["images"] for i in range(len(split))])

    def images(self, name):
        split, space = self.data.split(name), self.space
        pairs = {"closed": space.closed_pairs, "pair": space.train_pairs}
        found = {k: torch.from_numpy(space.locate(split.pairs, v)) for k, v in pairs.items()}
        seen = torch.from_numpy(space.locate(space.closed_pairs, space.train_pairs) >= 0)
        allowed = seen | torch.from_numpy(space.locate(space.closed_pairs, space.val_pairs) >= 0)
        labels = {"attr": torch.from_numpy(split.attr.copy()), "obj": torch.from_numpy(split.obj.copy())}
        return {"images": self.pixels(name), **labels, **found, "seen": seen, "allowed": allowed}

    def batches(self):
        count = len(self.data.split("train"))
        return [epoch_batches(self.config.seed, e, count, self.config.batch) for e in range(self.config.epochs)]

    def public(self):
        """The public loop, run."""
        model = self.plain_model(copy.deepcopy(self.start), self.draws)
        self.draws.attach(model.method, self.monkeypatch)
        augmented = None
        if self.config.augment:
            pixels, keys = self.pixels("train"), id_keys(self.data.split("train").ids)
            augmented = lambda epoch: augment(pixels, keys, self.config.seed, epoch)  # noqa: E731
        loop = PublicLoop(model, self.config, augmented=augmented, **self.loop)
        return loop.run(self.images("train"), self.images("val"), self.space, self.batches())

    def ours(self):
        """The run's training loop with the same draws; losses, validations, and the weights it keeps."""
        draws, step = self.draws, Method.training_step

        def attached(trainer_log):
            def log(t, **record):
                if record["event"] == "start":
                    draws.attach(t.method, self.monkeypatch)
                    draws.step = -1
                trainer_log(t, **record)

            return log

        def training_step(method, batch):
            draws.step += 1
            return step(method, batch)

        def kept(images, rows, dropout, seed):
            yield slice(0, images), draws.kept("prototypes", (images, *rows.shape), dropout)

        self.monkeypatch.setattr(Trainer, "log", attached(Trainer.log))
        self.monkeypatch.setattr(Method, "training_step", training_step)
        self.monkeypatch.setattr(clus_pro_contrast, "masks", kept)
        self.monkeypatch.setattr(Prototypes, "gumbel", lambda bank, plan: draws.gumbel(plan.shape))
        assert train_worker(self.run, Group(), torch.device("cpu")) == "done"
        return list(self.run.metrics("step")), list(self.run.metrics("epoch"))

    def assert_equal(self, public):
        """Losses of all steps, learning rates of both epochs, validations, the epoch that is kept, and its weights."""
        steps, epochs = self.ours()
        assert len(steps) == len(public.losses) == 10
        close = KEPT if self.start.frozen_images and not self.config.augment else CLOSE
        np.testing.assert_allclose([s["loss"] for s in steps], public.losses, **close)
        assert [e["auc_ref20"] for e in epochs] == pytest.approx(public.aucs, abs=1e-9)
        assert max(public.aucs) > 0.01  # there is something to compare
        best = checkpoint.best(self.run.checkpoints)
        assert best["epoch"] == public.kept_epoch
        weights = checkpoint.load(checkpoint.find(self.run.checkpoints, "best")).method
        assert weights.keys() == public.kept.keys()
        for name, value in public.kept.items():
            if "num_batches" not in name:
                torch.testing.assert_close(weights[name], value, msg=lambda m, n=name: f"{n}: {m}", **close)
        return steps


def rates(method, value=None):
    """Dropout rates: off, or all the same."""
    return dict.fromkeys(RATES[method], 0.0 if value is None else value)


def slowly(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("method", ["csp", "clusPro", *slowly("troika", "msci")])
@pytest.mark.parametrize("dropout", [*slowly(None), 0.3], ids=["no-dropout", "same-masks"])
def test_ten_steps_are_those_of_the_public_loop(method, dropout, make_run, monkeypatch):
    monkeypatch.setattr(branches, "REFERENCE_CHUNK", 16)  # only the public *test* programs repeat primitives with chunks of pairs
    sides = Sides(method, make_run, monkeypatch, **rates(method, dropout))
    steps = sides.assert_equal(sides.public())
    rate = {"csp": [0.02, 0.02]}.get(method, [2e-3, 1e-3])
    assert [steps[0]["lr"], steps[-1]["lr"]] == pytest.approx(rate)


@pytest.mark.parametrize("method", slowly("troika", "msci"))
def test_the_correct_mode_leaves_the_public_trajectory_after_the_first_validation(method, make_run, monkeypatch):
    """Otherwise the test above would not tell the modes apart: batch norm alone does, without any dropout."""
    sides = Sides(method, make_run, monkeypatch, train_mode="correct", **rates(method))
    public, (steps, _) = sides.public(), sides.ours()
    gaps = np.abs(np.array([s["loss"] for s in steps]) - public.losses)
    assert gaps[:5].max() < 1e-8
    assert gaps[5] > 1e-2


def test_csp_with_augmentation_is_the_public_loop_with_a_tower_in_the_step(make_run, monkeypatch):
    sides = Sides("csp", make_run, monkeypatch, augment=True, attr_dropout=0.3)
    augmented = sides.public()
    sides.assert_equal(augmented)
    plain = Sides("csp", make_run, monkeypatch, attr_dropout=0.3).public()
    assert np.abs(np.array(plain.losses) - augmented.losses).max() > 1e-2


# -- the plain forward passes are the public programs' ------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("name", "plain"), [("troika", PlainTroika), ("csp", PlainCSP), ("msci", PlainMSCI)])
def test_plain_logits_are_those_of_the_public_program(name, plain, reference, shared):
    arrays, about = reference(f"{name}_reference"), json.loads((shared / f"fixtures/{name}_reference.json").read_text())
    state = {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}
    method = from_reference(name, state, about["attributes"], about["objects"], about["config"])
    logits = plain(method, Draws(0)).logits(arrays["inputs/images"], arrays["pairs/train"])
    for got, branch in zip(logits, ("pair", "attr", "obj"), strict=False):
        torch.testing.assert_close(got, arrays[f"tensors/logits_{branch}"], atol=5e-5, rtol=2e-4)


def test_the_plain_step_of_cluspro_is_that_of_the_public_program(reference, shared):
    from clus_pro_fixtures import own_noise, public_method

    method, batch = public_method(shared, reference)
    arrays, scalars = (
        reference("cluspro_reference"),
        json.loads((shared / "fixtures/cluspro_reference.json").read_text())["scalars"],
    )
    draws, noise = Draws(0), own_noise(reference)
    draws.gumbel = lambda shape: noise
    loss = PlainClusPro(method.train(), draws).loss(*(batch[k] for k in ("images", "attr", "obj", "pair")), arrays["pairs/train"])
    assert float(loss.detach()) == pytest.approx(scalars["loss"], abs=1e-4)
    expected = torch.cat([arrays["tensors/prototypes_attr_after"], arrays["tensors/prototypes_obj_after"]])
    torch.testing.assert_close(method.prototypes.bank, expected, atol=1e-6, rtol=0)
    parts = reference("cluspro_parts")
    torch.testing.assert_close(
        method.head_mlps["attribute"].bn1_fc.running_var, parts["after.attr1.bn1_fc.running_var"], atol=1e-6, rtol=1e-5
    )
    loss.backward()
    torch.testing.assert_close(method.prompts.table.grad, arrays["tensors/grad.soft_att_obj"], atol=1e-5, rtol=1e-4)
