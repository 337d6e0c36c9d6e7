"""The Lightning callback, in a small stand-in for Trainer and, where it is installed, in Lightning itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dagrow.errors import UsageError

SCORE = {"rows": 256, "verify": 1, "by": {"natural": {"starts": 4, "steps": 5}}}


def loaders():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    return [DataLoader(TensorDataset(x[part], y[part]), batch_size=64, shuffle=k == 0) for k, part in enumerate((slice(500), slice(500, 700)))]


class Parts:
    """What both kinds of module have."""

    def build(self):
        self.net = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return self.criterion(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Module(Parts, nn.Module):
    def __init__(self):
        super().__init__()
        self.build()
        self.logged = {}

    def log(self, name, value):
        self.logged[name] = value


class Trainer:
    """The hooks of a training run, in Lightning's order."""

    def __init__(self, max_epochs, callbacks, world_size=1):
        self.max_epochs, self.callbacks, self.world_size, self.current_epoch = max_epochs, callbacks, world_size, 0

    def fit(self, module, train, val=None):
        self.train_dataloader, self.val_dataloaders, self.optimizers = train, val, [module.configure_optimizers()]
        self.call("on_fit_start", module)
        for epoch in range(self.max_epochs):
            self.current_epoch = epoch
            for k, batch in enumerate(train):
                self.optimizers[0].zero_grad()
                module.training_step(batch, k).backward()
                self.optimizers[0].step()
            self.call("on_train_epoch_end", module)

    def call(self, hook, module):
        for callback in self.callbacks:
            getattr(callback, hook)(self, module)


def callback(**options):
    from dagrow.lightning import GrowerCallback

    return GrowerCallback(edits=[{"widen": {"units": 4}}], score=SCORE, **options)


@pytest.mark.parametrize("part", ["", "net"])
def test_a_module_grows_between_epochs(part):
    module, grows = Module(), callback(epochs=2, part=part, example_input=torch.zeros(2, 64))
    Trainer(5, [grows]).fit(module, *loaders())
    assert len(grows.history) == 2 and grows.history[0].changed and module.net[0].out_features > 4
    assert module.logged["grower/params"] == sum(p.numel() for p in module.parameters())
    held = [p for g in grows.grower.optimizer.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, module.parameters()))


def test_what_the_callback_cannot_do_is_said():
    train, val = loaders()
    with pytest.raises(UsageError, match="processes"):
        Trainer(2, [callback()], world_size=2).fit(Module(), train, val)
    with pytest.raises(UsageError, match="2 validation"):
        Trainer(2, [callback()]).fit(Module(), train, [val, val])
    module = Module()
    module.criterion = None
    grows = callback()
    with pytest.raises(UsageError, match="no loss_fn"):
        grows._loss(module)
    with pytest.raises(UsageError, match="every so many"):
        callback(epochs=0)


def test_lightning_is_not_imported_before_it_is_asked_for():
    code = "import sys, dagrow.lightning; print([n for n in ('lightning', 'pytorch_lightning', 'torch') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("home", ["lightning.pytorch", "pytorch_lightning"])
def test_in_lightning_itself(home, tmp_path):
    if importlib.util.find_spec(home.partition(".")[0]) is None:
        pytest.skip(f"{home} is not installed")
    pl = pytest.importorskip(home)

    class Real(Parts, pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.build()

    if not issubclass(type(callback()), pl.Callback):
        pytest.skip("the other Lightning was found first")
    module, grows = Real(), callback(epochs=1)
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[grows], accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )
    trainer.fit(module, *loaders())
    assert len(grows.history) == 3 and grows.history[0].changed and module.net[0].out_features > 4
    held = [p for g in trainer.optimizers[0].param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, module.parameters()))
    assert float(F.cross_entropy(module.net(torch.zeros(1, 64)), torch.zeros(1, dtype=torch.int64)).detach()) > 0
