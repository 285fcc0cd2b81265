import pytest
import torch
from torch.utils.data import DataLoader

import fcos_fast

pytest.importorskip("torchvision")
from tests.integrations.detectors import small_fcos

lightning = pytest.importorskip(
    "lightning", reason="Lightning is not installed; it comes with fcos_fast[interop]"
)


class Task(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.detector = small_fcos()
        self.seen = []

    def training_step(self, batch, index):
        losses = self.detector(*batch)
        self.seen.append({name: loss.item() for name, loss in losses.items()})
        self.log_dict(losses)
        return sum(losses.values())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def examples(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        corner = torch.rand(3, 2, generator=generator) * 60
        boxes = torch.cat((corner, corner + 20), dim=1)
        yield torch.rand(3, 96, 128, generator=generator), {"boxes": boxes, "labels": torch.tensor([0, 1, 2])}


def train(task, folder):
    loader = DataLoader(
        list(examples(6)), batch_size=2, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder
    )
    trainer.fit(task, loader)
    return task.seen, folder


def test_a_trainer_fits_an_accelerated_module(tmp_path):
    """Same losses at every step as without, and a checkpoint that the plain module loads."""
    expected, _ = train(Task(), tmp_path / "plain")
    accelerated = fcos_fast.accelerate(Task())
    losses, folder = train(accelerated, tmp_path / "accelerated")
    assert len(losses) == 3
    for found, wanted in zip(losses, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    (checkpoint,) = folder.rglob("*.ckpt")
    plain = Task()
    plain.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, accelerated.get_parameter(name))
