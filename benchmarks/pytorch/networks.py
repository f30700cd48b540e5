"""PyTorch networks of the shapes of GaitBase, DeepGaitV2-P3D, GaitSet and GaitPart.

What our models are timed against (benchmarks/zoo.py, benchmarks/device.py): plain
PyTorch as one writes it after reading the papers, with the parameters of the published
sizes, run eagerly. They are trained on nothing and checked against nothing but their
number of parameters. Images are [N C H W], N = sequences x frames.
"""

import torch
import torch.nn.functional as F
from torch import nn

FRAMES, CLASSES = 30, 74


class Strips(nn.Module):
    """One matrix for each strip: [B S C] -> [B S D]."""

    def __init__(self, strips: int, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(strips, channels, size))

    def forward(self, x):
        return torch.einsum("bsc,scd->bsd", x, self.weight)


class Head(nn.Module):
    """Strips of a map [B C H W], a matrix each, batch norm, cosines with classes."""

    def __init__(self, channels: int, classes: int, strips: int = 16, size: int = 256):
        super().__init__()
        self.strips, self.size = strips, size
        self.dense = Strips(strips, channels, size)
        self.norm = nn.BatchNorm1d(strips * size)
        self.classes = Strips(strips, size, classes)

    def forward(self, x):
        before = self.dense(pyramid(x, (self.strips,)))
        after = self.norm(before.flatten(1)).view_as(before)
        weight = F.normalize(self.classes.weight, dim=1)
        logits = torch.einsum("bsd,sdn->bsn", F.normalize(after, dim=2), weight)
        return before, logits


def pyramid(x, bins):
    """Mean + maximum of horizontal bands: [N C H W] -> [N sum(bins) C]."""
    parts = []
    for count in bins:
        bands = x.reshape(*x.shape[:2], count, -1)
        parts.append(bands.mean(3) + bands.amax(3))
    return torch.cat(parts, 2).transpose(1, 2)


def over_frames(x, frames: int):
    """Maximum over the frames of a sequence: [B*T ...] -> [B ...]."""
    return x.reshape(-1, frames, *x.shape[1:]).amax(1)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet's basic block)."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outer), nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class BlockP3D(nn.Module):
    """Block on [B C T H W] with a residual convolution over time between the two."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        strides = (1, stride, stride)
        space = dict(kernel_size=(1, 3, 3), padding=(0, 1, 1), bias=False)
        self.conv1 = nn.Conv3d(inner, outer, stride=strides, **space)
        self.conv2 = nn.Conv3d(outer, outer, **space)
        self.time = nn.Conv3d(outer, outer, (3, 1, 1), 1, (1, 0, 0), bias=False)
        self.norm1, self.norm2 = nn.BatchNorm3d(outer), nn.BatchNorm3d(outer)
        self.time_norm = nn.BatchNorm3d(outer)
        self.shortcut = nn.Sequential()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(
                nn.Conv3d(inner, outer, 1, strides, bias=False), nn.BatchNorm3d(outer)
            )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = F.relu(y + self.time_norm(self.time(y)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.shortcut(x), inplace=True)


class GaitBase(nn.Module):
    """ResNet9 on each frame, maximum over time, strips."""

    def __init__(self, classes=CLASSES, frames=FRAMES, inputs=1):
        super().__init__()
        self.frames = frames
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )  # fmt: skip
        widths, strides = (64, 64, 128, 256, 512), (1, 2, 2, 1)
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:], strides))
        self.head = Head(512, classes)

    def forward(self, images):
        return self.head(over_frames(self.blocks(self.stem(images)), self.frames))


class DeepGaitV2(nn.Module):
    """A 2-D stage and three P3D stages of (1, 4, 4, 1) blocks, the head of GaitBase."""

    def __init__(self, classes=CLASSES, frames=FRAMES, layers=(1, 4, 4, 1)):
        super().__init__()
        self.frames = frames
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )  # fmt: skip
        self.first = nn.Sequential(*(Block(64, 64, 1) for _ in range(layers[0])))
        blocks, width = [], 64
        for outer, stride, count in zip((128, 256, 512), (2, 2, 1), layers[1:]):
            for number in range(count):
                blocks.append(BlockP3D(width, outer, stride if number == 0 else 1))
                width = outer
        self.later = nn.Sequential(*blocks)
        self.head = Head(512, classes)

    def forward(self, images):
        x = self.first(self.stem(images))
        x = x.reshape(-1, self.frames, *x.shape[1:]).transpose(1, 2)  # [B C T H W]
        return self.head(self.later(x.contiguous()).amax(2))


def pair(inner: int, outer: int, kernel: int = 3) -> nn.Sequential:
    """Two convolutions with leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(inner, outer, kernel, 1, kernel // 2, bias=False),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
        nn.LeakyReLU(inplace=True),
    )


class GaitSet(nn.Module):
    """Frame stream and set stream, two pyramids."""

    def __init__(self, frames=FRAMES, bins=(16, 8, 4, 2, 1)):
        super().__init__()
        self.frames, self.bins = frames, bins
        self.frame1, self.frame2 = pair(1, 32, 5), pair(32, 64)
        self.frame3 = pair(64, 128)
        self.set2, self.set3 = pair(32, 64), pair(64, 128)
        self.pool = nn.MaxPool2d(2)
        self.dense = Strips(2 * sum(bins), 128, 256)

    def forward(self, images):
        x = self.pool(self.frame1(images))
        whole = self.pool(self.set2(over_frames(x, self.frames)))
        x = self.pool(self.frame2(x))
        whole = self.set3(whole + over_frames(x, self.frames))
        x = over_frames(self.frame3(x), self.frames)
        both = [pyramid(stream, self.bins) for stream in (x, whole + x)]
        return self.dense(torch.cat(both, 1)), None


class Focal(nn.Module):
    """A convolution within each of `strips` bands, leaky ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int, strips: int):
        super().__init__()
        self.strips = strips
        self.conv = nn.Conv2d(inner, outer, kernel, 1, kernel // 2, bias=False)

    def forward(self, x):
        bands = torch.cat(x.chunk(self.strips, 2), 0)
        y = F.leaky_relu(self.conv(bands), inplace=True)
        return torch.cat(y.chunk(self.strips, 0), 2)


class Motion(nn.Module):
    """Attention over windows of frames, of each strip: [B S*C T] -> the same."""

    def __init__(self, strips: int, channels: int, window: int, last: int):
        super().__init__()
        wide, narrow = strips * channels, strips * channels // 4
        options = dict(groups=strips, bias=False)
        self.scores = nn.Sequential(
            nn.Conv1d(wide, narrow, 3, padding=1, **options),
            nn.LeakyReLU(inplace=True),
            nn.Conv1d(narrow, wide, last, padding=last // 2, **options),
        )
        self.window = window

    def forward(self, x):
        window = (self.window, 1, self.window // 2)
        motion = F.avg_pool1d(x, *window) + F.max_pool1d(x, *window)
        return motion * torch.sigmoid(self.scores(x))


class GaitPart(nn.Module):
    """Focal convolutions, strips, micro-motion."""

    def __init__(self, frames=FRAMES, strips=16):
        super().__init__()
        self.frames, self.strips = frames, strips
        self.first = nn.Sequential(Focal(1, 32, 5, 1), Focal(32, 32, 3, 1))
        self.second = nn.Sequential(Focal(32, 64, 3, 4), Focal(64, 64, 3, 4))
        self.third = nn.Sequential(Focal(64, 128, 3, 8), Focal(128, 128, 3, 8))
        self.pool = nn.MaxPool2d(2)
        self.short = Motion(strips, 128, 3, 1)
        self.long = Motion(strips, 128, 5, 3)
        self.dense = Strips(strips, 128, 128)

    def forward(self, images):
        x = self.pool(self.second(self.pool(self.first(images))))
        x = pyramid(self.third(x), (self.strips,))  # [B*T S C]
        x = x.reshape(-1, self.frames, x.shape[1] * x.shape[2]).transpose(1, 2)
        x = (self.short(x) + self.long(x)).amax(2)  # [B S*C]
        return self.dense(x.reshape(len(x), self.strips, -1)), None


class Layer(nn.Module):
    """A pre-norm transformer layer with layer scale, as DINOv2's."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1 = nn.Parameter(torch.ones(width))
        self.scale2 = nn.Parameter(torch.ones(width))

    def forward(self, x):
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, -1)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        attended = attended.transpose(1, 2).reshape(n, tokens, width)
        x = x + self.scale1 * self.out(attended)
        return x + self.scale2 * self.down(F.gelu(self.up(self.norm2(x))))


class Fusion(nn.Module):
    """Two maps [N C H W] mixed with weights per pixel and channel that sum to 1."""

    def __init__(self, channels: int, squeeze: int = 16):
        super().__init__()
        inner = channels // squeeze
        self.weights = nn.Sequential(
            nn.Conv2d(2 * channels, inner, 1, bias=False), nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True), nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, 2 * channels, 1, bias=False),
        )  # fmt: skip

    def forward(self, one, other):
        weights = self.weights(torch.cat([one, other], 1)).unflatten(1, (2, -1))
        weights = weights.softmax(1)
        return one * weights[:, 0] + other * weights[:, 1]


class BigGait(nn.Module):
    """A network of BigGait's shape: frozen ViT-S/14, its features upsampled to 64 x 32,
    a mask, two branches of 16 channels, two stems, fusion, ResNet, strips.

    Images are RGB [N 3 448 224] (any multiples of the patch); maps are four times as
    many as tokens. width, layers, heads, taken: of the encoder and the layers whose
    outputs are used.
    """

    def __init__(
        self, classes=CLASSES, frames=FRAMES, *, width=384, layers=12, heads=6,
        taken=(2, 5, 8, 11), size=(448, 224), patch=14, hidden=768,
        widths=(64, 128, 256, 512),
    ):  # fmt: skip
        super().__init__()
        self.frames, self.taken = frames, taken
        self.grid = (size[0] // patch, size[1] // patch)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(
            0.02 * torch.randn(1, self.grid[0] * self.grid[1], width)
        )
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.mask = nn.Conv2d(width, 2, 1)
        self.appearance = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 16, 1))
        many = width * len(taken)
        self.denoised = nn.Sequential(
            nn.BatchNorm2d(many), nn.Conv2d(many, hidden, 1), nn.BatchNorm2d(hidden),
            nn.GELU(), nn.Conv2d(hidden, 16, 1),
        )  # fmt: skip
        self.stems = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, widths[0], 3, 1, 1, bias=False),
                nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True),
                Block(widths[0], widths[0], 1),
            )
            for _ in range(2)
        )  # fmt: skip
        self.fusion = Fusion(widths[0])
        self.blocks = nn.Sequential(*map(Block, widths, widths[1:], (2, 2, 1)))
        strips = min(16, self.grid[0] // 2)
        self.head = Head(widths[-1], classes, strips)
        for part in (self.patches, self.layers):
            part.requires_grad_(False)
        self.positions.requires_grad_(False)

    @torch.no_grad()
    def features(self, images):
        """Frozen: maps [N C H W] of the taken layers, twice the grid."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        kept = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.taken:
                kept.append(x)
        maps = torch.cat(kept, 2).transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(maps, scale_factor=2, mode="bilinear")

    def forward(self, images):
        maps = self.features(images)
        last = maps[:, -self.mask.in_channels :]
        person = self.mask(last).softmax(1)[:, 1:]
        one = self.denoised(maps).softmax(1) * person
        other = self.appearance(last).sigmoid() * person
        x = self.fusion(self.stems[0](one), self.stems[1](other))
        return self.head(over_frames(self.blocks(x), self.frames))


NETWORKS = {
    "gaitbase": GaitBase,
    "deepgaitv2": DeepGaitV2,
    "gaitset": GaitSet,
    "gaitpart": GaitPart,
}


def triplet(embeddings, labels, margin: float = 0.2):
    """Batch-all triplet loss per strip, mean over the active ones."""
    x = embeddings.transpose(0, 1).float()  # [S B D]
    distance = torch.cdist(x, x)  # [S B B]
    same = labels[:, None] == labels[None]
    eye = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    hinge = F.relu(distance[:, :, :, None] - distance[:, :, None, :] + margin)
    hinge = hinge * ((same & ~eye)[:, :, None] & ~same[:, None, :])
    return (hinge.sum((1, 2, 3)) / (hinge > 0).sum((1, 2, 3)).clamp(min=1)).mean()


def loss(outputs, labels):
    embeddings, logits = outputs
    total = triplet(embeddings, labels)
    if logits is not None:
        repeated = labels[:, None].expand(logits.shape[:2]).flatten()
        total = total + F.cross_entropy(
            16 * logits.float().flatten(0, 1), repeated, label_smoothing=0.1
        )
    return total


def parameters(network) -> int:
    return sum(x.numel() for x in network.parameters())


def calls(network, images, labels, device: str = "cpu", dtype=torch.float32) -> dict:
    """{"forward", "step"}: functions that run one of them to its end.

    images: float32 numpy [N C H W]; labels [B]. dtype: bfloat16 means autocast. A step
    is forward, losses, backward and SGD with momentum.
    """
    layout = dict(memory_format=torch.channels_last)
    network = network.to(device)
    if not any(isinstance(x, nn.Conv3d) for x in network.modules()):
        network = network.to(**layout)
    images = torch.tensor(images).to(device, **layout)
    labels = torch.tensor(labels).long().to(device)
    rate = dict(lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = torch.optim.SGD(network.parameters(), **rate)
    cast = torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def finish():
        if device == "cuda":
            torch.cuda.synchronize()

    def forward():
        network.eval()
        with torch.inference_mode(), cast:
            network(images)
        finish()

    def step():
        network.train()
        optimizer.zero_grad(set_to_none=True)
        with cast:
            outputs = network(images)
        loss(outputs, labels).backward()
        optimizer.step()
        finish()

    return {"forward": forward, "step": step}
