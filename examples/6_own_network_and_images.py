"""One's own CNN on one's own images, from a folder of pictures to a small file that runs.

Writes a folder of pictures as you would have one (train/ and test/, a folder per class), trains a
CNN on it, compresses that with `JointPruneQuant-v0`, and saves, loads and runs what comes out. To
compress yours, keep the second half: any CNN that torch.fx can trace will do.

    python examples/6_own_network_and_images.py
    python examples/6_own_network_and_images.py --plans 200 --out compressed --target-reduction 0.99
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

from compress_env import compress, load_compressed
from compress_env.compressed_file import save_compressed
from compress_env.data import load_splits, normalize


class SmallCNN(nn.Module):
    """A CNN with a shortcut, so that some of its channels can only go together."""

    def __init__(self, num_classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, num_classes) of images (n, 3, H, W)."""
        features = torch.relu(self.stem(images))
        return self.head(torch.relu(features + self.block(features)))


def write_pictures(folder: Path) -> None:
    """Scikit-learn's digits as PNG files, four fifths of them for training."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("test" if index % 5 == 0 else "train") / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype(np.uint8)).convert("RGB").save(path)


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Plain training; yours is done already."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True)
    batches = len(images) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: batches * 64].view(batches, 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--plans", type=int, default=30, help="plans to try")
parser.add_argument("--epochs", type=int, default=8, help="epochs of training the dense network")
parser.add_argument("--target-reduction", type=float, default=0.985)
parser.add_argument("--out", type=Path, help="folder to write to; by default a temporary one")
args = parser.parse_args()
temporary = tempfile.TemporaryDirectory()  # goes with the program
out = args.out or Path(temporary.name)
if args.out is None:  # decoded images are kept in a cache, which is of no use here
    os.environ["COMPRESS_ENV_CACHE"] = temporary.name
torch.manual_seed(0)

pictures = out / "pictures"
write_pictures(pictures)
splits = load_splits("imagefolder", pictures)  # cuts the search split off from the train split
network = SmallCNN(splits.num_classes)
train_images = normalize(splits.train.images, splits)
train(network, train_images, torch.as_tensor(np.array(splits.train.labels)), args.epochs)

# From here on it is the same for every network.
env = gym.make(
    "JointPruneQuant-v0",
    network=network,
    dataset="imagefolder",
    data_root=pictures,
    target_reduction=args.target_reduction,
    render_mode="ansi",
)
task = env.unwrapped.task
random = np.random.default_rng(0)
best_reward, best_plan, best_table = -np.inf, None, ""
for index in range(args.plans):
    env.reset(seed=0)
    # Near zero, which is uniform bits; an agent (examples 2 to 5) does better.
    action = random.normal(0, 0.2 if index else 0.0, env.action_space.shape)
    _, reward, _, _, info = env.step(action.astype(np.float32))
    if reward > best_reward:
        best_reward, best_plan, best_table = reward, info["plan"], env.render()
print(f"{best_table}\n")

small = compress(task.graph, best_plan, task.calibration.images)  # an ordinary nn.Module
file = out / "compressed.safetensors"
shape = tuple(task.search.images.shape[1:])
save_compressed(small, file, best_plan, num_classes=splits.num_classes, input_shape=shape)
loaded = load_compressed(file, network=SmallCNN(splits.num_classes))

dense_file = out / "dense.pt"
torch.save(network.state_dict(), dense_file)
images = normalize(splits.test.images, splits).to(memory_format=torch.channels_last)
labels = torch.as_tensor(np.array(splits.test.labels))
print("network     test accuracy  bytes of the file")
with torch.no_grad():
    for name, made, path in (("dense", network, dense_file), ("compressed", loaded, file)):
        accuracy = (made(images).argmax(1) == labels).float().mean()
        print(f"{name:<10}  {accuracy:13.2%}  {path.stat().st_size:17,}")
    same = torch.equal(loaded(images), small(images))
print(f"the loaded network gives the same outputs as the one that was saved: {same}")
if args.out:
    print(f"written to {file}")
