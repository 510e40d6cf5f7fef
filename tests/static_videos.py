"""Shared by the tests of PruneVID and HoliTom: partly redundant videos, and the same computations as plain loops."""

from fractions import Fraction

import torch

SHAPES = [(1, 1, 8), (1, 30, 8), (2, 1, 8), (2, 7, 16), (5, 3, 8), (9, 20, 16), (16, 12, 8), (33, 25, 8)]
RATIOS = [0.02, 0.1, 0.25, 0.5, 0.9]


def redundant_video(num_frames: int, tokens_per_frame: int, width: int, seed: int = 0):
    """Features (T, N, D) of scenes in which about half of the places hardly move, and attention (T, N)."""
    generator = torch.Generator().manual_seed(seed)
    scene = (torch.rand(num_frames, generator=generator) < 0.25).cumsum(0)
    backgrounds = torch.randn(num_frames + 1, tokens_per_frame, width, generator=generator)
    # The places move by different amounts, so that some stop being static in the middle of a scene.
    moves = torch.rand(tokens_per_frame, 1, generator=generator) * (torch.arange(tokens_per_frame) % 2)[:, None] * 2
    noise = torch.randn(num_frames, tokens_per_frame, width, generator=generator)
    attention = torch.rand(num_frames, tokens_per_frame, generator=generator)
    return backgrounds[scene] + (0.1 + moves) * noise, attention


def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
    norm = x.norm() * y.norm()
    return float(x @ y / norm) if norm > 0 else 0.0


def cluster(tokens: list, num_clusters: int) -> tuple[list[int], list[int]]:
    """DPC-kNN with 7 neighbours: the positions of the centres, and for every token the position of its centre."""
    count, width = len(tokens), len(tokens[0])
    squared = [[float((x - y).square().sum()) / width for y in tokens] for x in tokens]
    neighbors = min(7, count)
    density = [float(torch.tensor(-sum(sorted(row)[:neighbors]) / neighbors).double().exp()) for row in squared]
    largest = max(map(max, squared))
    score = []
    for i in range(count):
        denser = [squared[i][j] for j in range(count) if density[j] > density[i]]
        score.append(density[i] * min(denser, default=largest) ** 0.5)
    centers = sorted(range(count), key=lambda i: (-score[i], i))[:num_clusters]
    nearest = [i if i in centers else min(centers, key=lambda c: (squared[i][c], c)) for i in range(count)]
    return sorted(centers), nearest


def share(total: int, sizes: list[int]) -> list[int]:
    """Share a total out in proportion to the sizes, by largest remainder."""
    if not sum(sizes):
        return [0] * len(sizes)
    ideal = [Fraction(size * total, sum(sizes)) for size in sizes]
    counts = [int(value) for value in ideal]
    for i in sorted(range(len(sizes)), key=lambda i: (counts[i] - ideal[i], i))[: total - sum(counts)]:
        counts[i] += 1
    return counts


def compare(method, features: torch.Tensor, attention: torch.Tensor, expected: dict, starts: list[int]) -> None:
    """Compress, and compare the token of every kept index, the tokens that went into it, and the segments."""
    video = method.compress(features, attention)
    assert len(expected) == method.exact_num_tokens(*attention.shape)
    assert video.indices.tolist() == sorted(expected)
    assert video.starts.nonzero().flatten().tolist() == starts
    sources = [(video.slots.flatten() == row).nonzero().flatten().tolist() for row in range(len(expected))]
    assert sources == [sorted(expected[index][1]) for index in sorted(expected)]
    tokens = torch.stack([expected[index][0] for index in sorted(expected)])
    torch.testing.assert_close(video.tokens, tokens.to(video.tokens), atol=1e-4, rtol=1e-4)
    unchanged = [expected[index][1][0] for index in sorted(expected) if len(expected[index][1]) == 1]
    assert video.selected.flatten().nonzero().flatten().tolist() == unchanged
