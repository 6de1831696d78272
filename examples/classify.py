"""Names what is in images, with a student that notebook 14 saved: python examples/classify.py STUDENT IMAGE..."""
import json
import sys

import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F


class Student(nn.Module):
    """Its variables bear the names that they have in the file."""

    def __init__(self, classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.conv3, self.conv4 = nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 128, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(128, 32), nn.Linear(32, classes)

    def forward(self, x):  # [N, 3, size, size]
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.max_pool2d(F.relu(self.conv4(F.relu(self.conv3(x)))), 2)
        return self.fc2(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1)))  # [N, classes]


def resize(x, height, width):
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True)


def square(x, size, framing):
    """Squeezed, or resized until the shorter side fits and cropped around the centre."""
    height, width = x.shape[2:]
    if framing == "squeeze":
        return resize(x, size, size)
    x = resize(x, size * height // min(height, width), size * width // min(height, width))
    top, left = (round((side - size) / 2) for side in x.shape[2:])
    return x[:, :, top : top + size, left : left + size]


def prepare(path, card):
    """What training did: upright, on white, a square of whole grey levels, then the network's size."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    x = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, image.height, image.width, 3)
    framing = card.get("framing", "squeeze")
    x = (square(x.permute(0, 3, 1, 2).float(), card["stored_size"], framing) + 0.5).floor()
    x = resize(x / 255, card["size"], card["size"])
    mean, std = (torch.tensor(card[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (x - mean) / std


if len(sys.argv) < 3:
    sys.exit(__doc__)
with safe_open(sys.argv[1], "pt") as file:
    card = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    net = Student(len(card["classes"])).eval()
    net.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
for path in sys.argv[2:]:
    with torch.no_grad():
        probabilities = net(prepare(path, card)).softmax(1)[0]
    for name, probability in zip(card["classes"], probabilities):
        print(f"{path}\t{name}\t{probability:.6f}")
