"""The moving average compared with the recurrence."""

from __future__ import annotations

import torch
from torch import nn

from fcos_fast.engine.ema import ExponentialMovingAverage


def small_model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4, bias=False))


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(seed)


def test_follows_the_recurrence():
    model = small_model()
    randomize(model, 0)
    ema = ExponentialMovingAverage(model, decay=0.5)
    expected = {k: v.clone().double() for k, v in model.state_dict().items()}
    for t in range(1, 30):
        randomize(model, t)
        ema.update(model)
        d = min(0.5, (1 + t) / (10 + t))  # 0.5 from t = 8 on
        for k, v in model.state_dict().items():
            expected[k] = d * expected[k] + (1 - d) * v.double() if v.is_floating_point() else v.double()
    for k, v in ema.model.state_dict().items():
        torch.testing.assert_close(v.double(), expected[k], rtol=1e-5, atol=1e-6)
    assert ema.model.state_dict()["1.num_batches_tracked"] == 29


def test_average_is_independent_of_the_model():
    model = small_model()
    ema = ExponentialMovingAverage(model, decay=0.9)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())
    before = ema.model[0].weight.clone()
    randomize(model, 1)
    torch.testing.assert_close(ema.model[0].weight, before)


def test_state_dict_continues_exactly():
    model = small_model()
    a = ExponentialMovingAverage(model, decay=0.99)
    for t in range(1, 4):
        randomize(model, t)
        a.update(model)
    b = ExponentialMovingAverage(small_model(), decay=0.99)
    b.load_state_dict(a.state_dict())
    randomize(model, 9)
    a.update(model)
    b.update(model)
    for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(x, y)
