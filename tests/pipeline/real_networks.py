"""Networks of the kinds that people build, small and in float64, with streams for them."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from streamflow.pipeline import trees

Linear = partial(nn.Linear, dtype=torch.float64)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, width, width, 3, padding=1, bias=False, dtype=torch.float64)
        self.conv1, self.bn1 = conv(), nn.BatchNorm2d(width, dtype=torch.float64)
        self.conv2, self.bn2 = conv(), nn.BatchNorm2d(width, dtype=torch.float64)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        out: Tensor = self.relu(y)
        return out


class ResidualNet(nn.Module):
    """Convolutions with batch norms, and skips inside and over the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
        self.layer1 = nn.Sequential(ResidualBlock(3), ResidualBlock(3))
        self.layer2 = nn.Sequential(ResidualBlock(3))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.layer2(self.layer1(x)) + x
        out: Tensor = self.fc(torch.flatten(self.pool(y), 1))
        return out


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, dtype=torch.float64)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.mlp = nn.Sequential(Linear(width, 2 * width), nn.GELU(), Linear(2 * width, width))

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, d // self.heads).unbind(2)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / (d // self.heads) ** 0.5
        if causal:
            scores = scores + torch.full(
                (t, t), float("-inf"), dtype=x.dtype, device=x.device
            ).triu(1)
        x = x + self.out(torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v).reshape(n, t, d))
        out: Tensor = x + self.mlp(x)
        return out


class HandWrittenTransformer(nn.Module):
    """Token indices and a mask; the mask skips all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, dtype=torch.float64)
        self.position = nn.Parameter(torch.randn(5, 8, dtype=torch.float64) / 10)
        self.blocks = nn.ModuleList(SelfAttention(8, 2) for _ in range(3))
        self.head = Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, causal=True)
        if mask is not None:
            keep = (~mask).unsqueeze(-1).to(x.dtype)
            x = (x * keep).sum(1) / keep.sum(1)
        else:
            x = x.mean(1)
        out: Tensor = self.head(x)
        return out


class EncoderNet(nn.Module):
    """Torch's own encoder layers; indices and padding mask cross to the last stage."""

    def __init__(self) -> None:
        super().__init__()
        layer = partial(
            nn.TransformerEncoderLayer, 8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64
        )
        self.embed = nn.Embedding(11, 8, dtype=torch.float64)
        self.layers = nn.ModuleList(layer() for _ in range(2))
        self.head = Linear(8, 3)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        out: Tensor = self.head(x[:, 0]) + (tokens == 0).to(x.dtype).mean()
        return out


def autoencoder() -> nn.Module:
    encoder = nn.Sequential(OrderedDict(down=Linear(6, 4), act=nn.Tanh(), code=Linear(4, 2)))
    decoder = nn.Sequential(OrderedDict(up=Linear(2, 4), act=nn.Tanh(), out=Linear(4, 6)))
    return nn.Sequential(OrderedDict(encoder=encoder, decoder=decoder))


class Fusion(nn.Module):
    """Named inputs, named outputs of several shapes, one of them an input passed on."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Linear(4, 5), Linear(3, 5)
        self.towers = nn.ModuleDict({"mix": Linear(5, 5), "tail": Linear(5, 2)})

    def forward(self, a: Tensor, b: Tensor, scale: Tensor | None = None) -> dict[str, Any]:
        left, right = self.left(a), self.right(b)
        mixed = self.towers["mix"](torch.tanh(left + right))
        if scale is not None:
            mixed = mixed * scale
        return {"score": self.towers["tail"](mixed), "parts": [mixed, left], "a": a}


class TwoHeads(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Linear(4, 6), nn.Tanh())
        self.first, self.second = Linear(6, 2), Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        first = self.first(h)
        return first, self.second(torch.cat([h * y, first], 1))


class Moments(NamedTuple):
    mean: Tensor
    scale: Tensor


@dataclass
class Answer:
    mean: Tensor
    steps: list[Tensor]


class Gaussian(nn.Module):
    """Returns a named tuple or a dataclass."""

    def __init__(self, *, as_dataclass: bool) -> None:
        super().__init__()
        self.as_dataclass = as_dataclass
        self.a, self.b, self.c = Linear(4, 5), Linear(5, 4), Linear(5, 4)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.a(x))
        mean, scale = self.b(h), F.softplus(self.c(h))
        return Answer(mean, [scale]) if self.as_dataclass else Moments(mean, scale)


class Recurrent(nn.Module):
    """GRU and LSTM over a sequence inside each sample; states cross as tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4, batch_first=True, dtype=torch.float64)
        self.lstm = nn.LSTM(4, 4, batch_first=True, dtype=torch.float64)
        self.head = Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, last = self.gru(x)
        z, state = self.lstm(y)
        out: Tensor = self.head(torch.cat([z[:, -1] + state[1][-1], last[-1]], 1))
        return out


class Shared(nn.Module):
    """One module called twice in its stage, between others."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.shared, self.leave = Linear(4, 4), Linear(4, 4), Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.shared(x))
        out: Tensor = self.leave(x)
        return out


def normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(Linear(4, 5)),
        nn.Tanh(),
        parametrizations.spectral_norm(Linear(5, 5)),
        nn.Tanh(),
        parametrizations.orthogonal(Linear(5, 5)),
        Linear(5, 2),
    )


def frozen() -> nn.Module:
    """A frozen stage, a frozen parameter elsewhere, and stages without parameters."""
    net = nn.Sequential(
        Linear(4, 5), nn.Tanh(), Linear(5, 5), nn.Sigmoid(), nn.Flatten(), Linear(5, 2)
    )
    for parameter in (net[2].weight, net[2].bias, net[5].bias):
        assert isinstance(parameter, nn.Parameter)
        parameter.requires_grad = False
    return net


class Fourier(nn.Module):
    """Complex values and complex parameters across cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = Linear(6, 6)
        self.filter = nn.Linear(4, 4, dtype=torch.complex128)
        self.leave = Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.enter(x))
        out: Tensor = self.leave(torch.fft.irfft(self.filter(spectrum) + spectrum, n=6))
        return out


class Steered(nn.Module):
    """Flags, None and nested structures among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Linear(4, 4), Linear(4, 4), Linear(4, 2)

    def forward(self, data: dict[str, Any], *, double: bool = False, bias: Any = None) -> Tensor:
        h = self.a(data["x"])
        if double:
            h = h * 2
        h = self.b(torch.tanh(h)) + (0 if bias is None else bias)
        out: Tensor = self.c(h * data["gate"][0])
        return out


@dataclass(frozen=True)
class Case:
    """A network with streams for it.

    Attributes:
        inputs: From a count to inputs; drawn from the global generator.
        targets: Likewise; None for a loss of the output alone.
        cuts: Lists of modules to cut before.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    targets: Callable[[int], Any] | None
    loss: Callable[..., Tensor]
    cuts: tuple[tuple[str, ...], ...]

    def network(self, device: torch.device | str = "cpu", seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(device)

    def stream(self, count: int, device: torch.device | str = "cpu", seed: int = 1) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            targets = None if self.targets is None else self.targets(count)
            return trees.map_tensors(lambda t: t.to(device), (self.inputs(count), targets))


def _reals(*sizes: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randn(count, *sizes, dtype=torch.float64)


def _classes(num_classes: int) -> Callable[[int], Tensor]:
    return lambda count: torch.randint(num_classes, (count,))


def _tokens(count: int) -> tuple[Tensor, Tensor]:
    mask = torch.rand(count, 5) < 0.4
    mask[:, 0] = False
    return torch.randint(11, (count, 5)), mask


def _both(output: Any, target: Any) -> Tensor:
    return sum(  # type: ignore[return-value]
        F.mse_loss(y, t) for y, t in zip(trees.floats(output), trees.floats(target), strict=True)
    )


def _likelihood(output: Moments, target: Tensor) -> Tensor:
    return ((output.mean - target) ** 2 / (output.scale + 0.1)).mean()


CASES = {
    "residual": Case(
        ResidualNet,
        _reals(2, 4, 4),
        _classes(4),
        F.cross_entropy,
        (
            ("layer1", "layer2"),
            ("layer1.0.bn1", "layer1.1.conv2", "layer2.0.relu"),
            ("layer1.0.relu", "fc"),
        ),
    ),
    "attention": Case(
        HandWrittenTransformer,
        lambda count: torch.randint(11, (count, 5)),
        _classes(3),
        F.cross_entropy,
        (("blocks.1", "head"), ("blocks.0.qkv", "blocks.1.mlp.1", "blocks.2.norm")),
    ),
    "attention with a mask": Case(
        HandWrittenTransformer,
        lambda count: dict(zip(("tokens", "mask"), _tokens(count), strict=True)),
        _classes(3),
        F.cross_entropy,
        (("blocks.1", "head"), ("blocks.0", "blocks.1.out", "blocks.2.mlp")),
    ),
    "encoder": Case(
        EncoderNet, _tokens, _classes(3), F.cross_entropy, (("layers.1",), ("layers.0", "head"))
    ),
    "autoencoder of inputs": Case(
        autoencoder, _reals(6), _reals(6), F.mse_loss, (("decoder",), ("encoder.act", "decoder.up"))
    ),
    "autoencoder of the output alone": Case(
        autoencoder,
        _reals(6),
        None,
        lambda output: (output.square() - 1).square().mean(),
        (("decoder",), ("encoder.code", "decoder.out")),
    ),
    "dicts": Case(
        Fusion,
        lambda count: {"b": _reals(3)(count), "a": _reals(4)(count)},
        _reals(2),
        lambda output, target: F.mse_loss(output["score"], target) + output["parts"][1].mean(),
        (("towers.mix",), ("right", "towers.tail")),
    ),
    "dicts with an optional entry": Case(
        Fusion,
        lambda count: {"scale": _reals(5)(count), "b": _reals(3)(count), "a": _reals(4)(count)},
        _reals(2),
        lambda output, target: F.mse_loss(output["score"], target) + output["parts"][0].mean(),
        (("towers.mix", "towers.tail"),),
    ),
    "tuples": Case(
        TwoHeads,
        lambda count: (_reals(4)(count), _reals(6)(count)),
        lambda count: (_reals(2)(count), _reals(3)(count)),
        _both,
        (("first",), ("body.1", "second")),
    ),
    "named tuple": Case(
        partial(Gaussian, as_dataclass=False),
        _reals(4),
        _reals(4),
        _likelihood,
        (("b",), ("b", "c")),
    ),
    "dataclass": Case(
        partial(Gaussian, as_dataclass=True),
        _reals(4),
        _reals(4),
        lambda output, target: F.mse_loss(output.mean, target) + output.steps[0].mean(),
        (("b",), ("b", "c")),
    ),
    "recurrent": Case(
        Recurrent, _reals(5, 3), _reals(2), F.mse_loss, (("lstm",), ("lstm", "head"))
    ),
    "shared": Case(Shared, _reals(4), _reals(2), F.mse_loss, (("shared",), ("shared", "leave"))),
    "parametrized": Case(normed, _reals(4), _reals(2), F.mse_loss, (("2",), ("1", "2", "4"))),
    "frozen": Case(frozen, _reals(4), _reals(2), F.mse_loss, (("2",), ("1", "2", "3", "5"))),
    "complex": Case(Fourier, _reals(6), _reals(2), F.mse_loss, (("filter",), ("filter", "leave"))),
    "steered": Case(
        Steered,
        lambda count: {
            "data": {"x": _reals(4)(count), "gate": [_reals(4)(count)]},
            "double": True,
            "bias": None,
        },
        _reals(2),
        F.mse_loss,
        (("b",), ("b", "c")),
    ),
}
