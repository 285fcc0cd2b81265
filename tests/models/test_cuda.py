from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _to_cuda(batch):
    images, targets = batch
    return [image.cuda() for image in images], [{k: v.cuda() for k, v in t.items()} for t in targets]


each_detector = pytest.mark.parametrize(
    "preset", ["official-improved", "retinanet", "torchvision-retinanet", "retinanet-tutorial"]
)


@each_detector
def test_losses_and_gradients_equal_the_cpu(small_model, batch, preset):
    model = small_model(norm="group", preset=preset).double()
    expected = model(*batch)
    sum(expected.values()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    losses = model(*_to_cuda(batch))
    sum(losses.values()).backward()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].cpu(), value, rtol=1e-4, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[name], rtol=1e-3, atol=1e-6, msg=name)


@each_detector
def test_detections_equal_the_cpu(small_model, batch, make_talkative, preset):
    model = small_model(norm="group", preset=preset).eval().double()
    make_talkative(model)
    expected = model(batch[0])
    for found, wanted in zip(model.cuda()(_to_cuda(batch)[0]), expected, strict=True):
        assert found["labels"].cpu().equal(wanted["labels"])
        torch.testing.assert_close(found["scores"].cpu(), wanted["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["boxes"].cpu(), wanted["boxes"], rtol=1e-4, atol=1e-2)


@each_detector
def test_a_training_step_never_waits_for_the_device(small_model, batch, monkeypatch, preset):
    monkeypatch.delenv("FCOS_FAST_CHECK", raising=False)
    model, batch = small_model(preset=preset).cuda(), _to_cuda(batch)
    sum(model(*batch).values()).backward()  # libraries synchronize during their initialization
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(model(*batch).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
