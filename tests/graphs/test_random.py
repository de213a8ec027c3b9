"""Random graphs of convolutions, additions, concatenations and resizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graphs.networks import ACTIVATIONS, FORMS, agree, shaken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fassd_kernels.graphs.backend import compile_graph


class Random(nn.Module):
    """Convolutions, additions, concatenations, resizes and poolings as they come."""

    def __init__(self, plan: list[tuple[int, int, int]], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.plan, self.layers = plan, nn.ModuleList()
        widths = [3]
        for kind, first, second in plan:
            a, b = widths[first % len(widths)], widths[second % len(widths)]
            wide = 1 + (first + second) % 9
            layer: nn.Module = nn.Identity()
            if kind == 0:
                d = 1 + second % 3
                layer = nn.Sequential(
                    nn.Conv2d(a, wide, 3, 1 + first % 2, d, d, bias=False), nn.BatchNorm2d(wide)
                )
            elif kind == 1:
                layer = nn.Conv2d(a + b, wide, 1)
            elif kind == 2:
                d = 1 + second % 2
                layer = nn.Sequential(
                    nn.Conv2d(a, a, (3, 1), padding=(2, 0), dilation=(2, 1)),
                    nn.PReLU(a) if second % 3 else nn.Hardswish(),
                    nn.Conv2d(a, a, (1, 3), padding=(0, d), dilation=(1, d)),
                    nn.PReLU(a) if second % 3 else nn.LeakyReLU(0.1),
                )
            elif kind == 5:
                side = 3 + 2 * (first % 3)
                deep = nn.Conv2d(a, a, side, 1 + second % 2, side // 2, groups=a, bias=False)
                layer = nn.Sequential(deep, nn.BatchNorm2d(a), nn.Hardswish())
            self.layers.append(layer)
            widths.append(wide if kind in (0, 1) else a)

    def forward(self, x: Tensor) -> Tensor:
        found, activations = [x], list(ACTIVATIONS.values())
        for (kind, first, second), layer in zip(self.plan, self.layers, strict=True):
            a, b = found[first % len(found)], found[second % len(found)]
            size = (max(a.shape[2], b.shape[2]), max(a.shape[3], b.shape[3]))

            corners = bool(second % 2)

            def fit(y: Tensor, size: tuple[int, int] = size, corners: bool = corners) -> Tensor:
                if y.shape[2:] == size:
                    return y
                return F.interpolate(y, size=size, mode="bilinear", align_corners=corners)

            if kind == 1:
                y = activations[(3 * first + second) % len(activations)](
                    layer(torch.cat([fit(a), fit(b)], 1))
                )
            elif kind == 2:
                y = layer(a) + a
                y = y.relu_() if first % 2 else y
            elif kind == 3:
                y = F.avg_pool2d(a, 2) if min(a.shape[2:]) > 3 else a * 0.5
            elif kind == 4:
                y = (
                    (a + fit(b)).relu()
                    if a.shape[1] == b.shape[1] and a.shape == fit(b).shape
                    else -a
                )
            elif kind == 6:
                y = F.max_pool2d(a, 3, 2, 1)
            else:
                y = layer(a)
            found.append(y)
        return torch.cat([y.mean((2, 3)) for y in found] + [found[-1].flatten(1)], 1)


@FORMS
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 11), st.integers(0, 11)),
        min_size=2,
        max_size=9,
    ),
    st.integers(0, 99),
)
def test_random_graphs(plan: list[tuple[int, int, int]], seed: int) -> None:
    torch._dynamo.reset()
    model = shaken(Random(plan, seed))
    agree(torch.compile(model, backend=compile_graph), model, torch.randn(2, 3, 15, 18))
