"""Opacus's ghost clipping vs. PyTorch's plain gradient, on `per_example.py`'s models.

The plain gradients of the two frameworks take different times; compare the ratios.
PyTorch and Opacus need an environment of their own:

    python -m venv opacus && opacus/bin/pip install torch opacus
    opacus/bin/python benchmarks/per_example_opacus.py
"""

import time
from statistics import median

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn

ROUNDS = 7


class Attention(nn.Module):
    """Causal attention from linear layers, which Opacus can clip."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 64
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (self.heads, 64)).transpose(1, 2)

        q, k, v = (split(layer(x)) for layer in self.qkv)
        x = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(up, nn.GELU(approximate="tanh"), down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Without learned positions, for which Opacus's ghost clipping has no rule."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Embedding(65, width)
        self.layers = nn.Sequential(Layer(width), Layer(width))
        self.out = nn.Linear(width, 65, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.embed(tokens))).transpose(1, 2)


class Loss(nn.Module):
    """The mean cross entropy of each example, over its tokens if it has some."""

    reduction = "mean"

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        losses = losses if losses.ndim == 1 else losses.mean(1)
        return losses.mean() if self.reduction == "mean" else losses


def mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    sizes = (nn.Linear(784, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10))
    first, second, third = sizes
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    return model, torch.randn(128, 784), torch.arange(128) % 10


def transformer(width: int, batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 65, (batch, 65))
    return Transformer(width), tokens[:, :-1].contiguous(), tokens[:, 1:]


def cnn(size: int, channels: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear((size // 4) ** 2 * 128, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )
    return model, torch.randn(128, channels, size, size), torch.arange(128) % 10


MODELS = {
    "mlp": mlp,
    "transformer_256": lambda: transformer(256, 32),
    "transformer_768": lambda: transformer(768, 16),
    "cnn_digits": lambda: cnn(8, 1),
    "cnn": lambda: cnn(32, 3),
}


def seconds(step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str) -> None:
    model, inputs, labels = MODELS[name]()
    criterion = Loss()

    def plain() -> None:
        model.zero_grad()
        criterion(model(inputs), labels).backward()

    for _ in range(2):
        plain()
    plain_times = [seconds(plain) for _ in range(ROUNDS)]
    clipped = GradSampleModuleFastGradientClipping(
        model, batch_first=True, max_grad_norm=1.0, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(clipped.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=len(inputs),
    )
    ghost_loss = DPLossFastGradientClipping(clipped, optimizer, criterion)

    def ghost() -> None:
        optimizer.zero_grad()
        ghost_loss(clipped(inputs), labels).backward()

    for _ in range(2):
        ghost()
    ghost_times = [seconds(ghost) for _ in range(ROUNDS)]
    first, second = median(plain_times), median(ghost_times)
    print(
        f"{name:16} plain {first * 1e3:8.1f} ms   ghost {second * 1e3:8.1f} ms"
        f"   ratio {second / first:.2f}",
        flush=True,
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)  # More threads are slower if other processes run.
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in MODELS:
        compare(name)


if __name__ == "__main__":
    main()
