"""Learning rates, clipping, and the optimizers' state through a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gemmary.errors import GemmaryError  # noqa: E402
from gemmary.tune.muon import RATE  # noqa: E402
from gemmary.tune.optim import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer, update  # noqa: E402
from gemmary.tune.state import Checkpoints, Snapshot, State, capture, restore  # noqa: E402


def rates(schedule: str, steps: int, warmup: int) -> list[float]:
    return [learning_rate(schedule, step, peak=2.0, steps=steps, warmup=warmup) for step in range(steps)]


def test_schedules() -> None:
    assert rates("constant", 5, 2) == [1.0, 2.0, 2.0, 2.0, 2.0]
    assert rates("linear", 6, 2) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    assert rates("cosine", 4, 0) == pytest.approx([1 + math.cos(math.pi * i / 4) for i in range(4)])
    for schedule in SCHEDULES:
        assert rates(schedule, 3, 5) == pytest.approx([0.4, 0.8, 1.2])
        assert rates(schedule, 1, 0) == [2.0]


def parameters() -> dict[str, torch.nn.Parameter]:
    torch.manual_seed(3)
    shapes = {"norm": (5,), "matrix": (4, 5), "model.layers.0.tall": (6, 3), "model.layers.1.tall": (6, 3)}
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def step(optimizer: torch.optim.Optimizer, trained: dict[str, torch.nn.Parameter], clip: float = 0.0) -> float:
    for weight in trained.values():
        weight.grad = weight.detach().sin() * 3
    return update(optimizer, 0.1, clip)


def test_clipping_scales_all_gradients_by_their_norm() -> None:
    clipped, scaled = parameters(), parameters()
    norm = math.sqrt(sum(float((3 * p.detach().sin()).square().sum()) for p in clipped.values()))
    for trained, clip in ((clipped, 0.5), (scaled, 0.0)):
        optimizer = torch.optim.SGD(trained.values(), lr=0.0)
        assert step(optimizer, trained, clip) == pytest.approx(norm)
        assert all(weight.grad is None for weight in trained.values())
    for name, start in parameters().items():
        moved, whole = start - clipped[name], start - scaled[name]
        torch.testing.assert_close(moved, whole * (0.5 / norm), rtol=1e-4, atol=1e-6)


def test_norms_do_not_decay() -> None:
    trained = parameters()
    optimizer = make_optimizer("adamw", trained, 0.5)
    for weight in trained.values():
        weight.grad = torch.zeros_like(weight)
    update(optimizer, 0.1, 1.0)
    torch.testing.assert_close(trained["norm"], parameters()["norm"])
    torch.testing.assert_close(trained["matrix"], parameters()["matrix"] * 0.95)


def test_muon_moves_the_layers_matrices_by_directions_of_one_size_and_the_rest_as_adamw() -> None:
    moved = {}
    for name in ("muon", "adamw"):
        trained = parameters()
        step(make_optimizer(name, trained, 0.0), trained)
        moved[name] = {key: (weight - parameters()[key]).detach() for key, weight in trained.items()}
    for key in ("norm", "matrix"):
        assert torch.equal(moved["muon"][key], moved["adamw"][key])
    for key in ("model.layers.0.tall", "model.layers.1.tall"):
        sizes = torch.linalg.svdvals(moved["muon"][key]) / (0.1 * RATE * 2**0.5)  # sqrt(rows / columns)
        assert sizes.min() > 0.6
        assert sizes.max() < 1.3
        u, _, vh = torch.linalg.svd(3 * parameters()[key].detach().sin(), full_matrices=False)
        assert torch.nn.functional.cosine_similarity((-u @ vh).flatten(), moved["muon"][key].flatten(), dim=0) > 0.95


def test_muon_needs_whole_matrices(tmp_path: Path) -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        shared = distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)))
        with pytest.raises(GemmaryError, match="muon needs whole matrices: choose adamw"):
            make_optimizer("muon", {"model.layers.0.o": torch.nn.Parameter(shared)}, 0.0)
    finally:
        destroy_process_group()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    trained = parameters()
    optimizer = make_optimizer(name, trained, 0.1)
    step(optimizer, trained)
    step(optimizer, trained)
    checkpoints = Checkpoints(tmp_path, 1, lambda text: None)
    checkpoints.save(Snapshot(State(step=2), {}, capture(trained, optimizer)))
    drawn = torch.rand(3)
    step(optimizer, trained)

    again = {key: torch.nn.Parameter(torch.zeros_like(weight)) for key, weight in trained.items()}
    other = make_optimizer(name, again, 0.1)
    found = checkpoints.newest()
    assert found is not None
    restore(found.files, again, other)
    assert torch.equal(torch.rand(3), drawn)
    step(other, again)
    assert all(torch.equal(trained[key], again[key]) for key in trained)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    trained = parameters()
    optimizer = make_optimizer("adamw", trained, 0.0)
    files = capture(trained, optimizer)
    with pytest.raises(GemmaryError, match="are not those of this model"):
        restore(files, {"norm": trained["norm"]}, optimizer)


def test_an_unknown_optimizer() -> None:
    with pytest.raises(GemmaryError, match="no optimizer is called 'lion': choose adamw, adafactor or muon"):
        make_optimizer("lion", parameters(), 0.0)
