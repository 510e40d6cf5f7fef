"""FlashVID's compression, written as plainly as possible: one loop per sentence of the paper, float64, no batching.

Ties go to the lowest index.
"""

import math

import torch


def compress(features, attention, config):
    """Kept tokens (M, D), their flat indices t * N + n in ascending order, and the frames of every segment.

    Args:
        features: with shape (T, N, D).
        attention: with shape (T, N).
        config: a `CompressionConfig`, read as if its behavior were "paper".
    """
    features, attention = features.double(), attention.double()
    num_frames, num_tokens, width = features.shape
    budget = math.ceil(num_tokens * config.retention_ratio * config.expansion)
    if budget >= num_tokens:
        return features.reshape(-1, width), list(range(num_frames * num_tokens)), [num_frames]
    num_selected = math.ceil(budget * config.alpha)
    segments = split(features.mean(1), config)
    kept = {}
    for segment in segments:
        chosen = {t: select(t, features, attention, segment, num_selected, config) for t in segment}
        kept.update({(t, n): features[t, n] for t in segment for n in chosen[t]})
        free = {t: [n for n in range(num_tokens) if n not in chosen[t]] for t in segment}
        if budget > num_selected:
            kept.update(merge(features, segment, free, budget, budget - num_selected, config))
    places = sorted(kept)
    indices = [t * num_tokens + n for t, n in places]
    return torch.stack([kept[place] for place in places]), indices, [len(segment) for segment in segments]


def cosine(a, b) -> float:
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else 0.0


def split(frames, config) -> list[range]:
    """DySeg: cut where neighbouring frames differ, then where they differ most until there are enough segments."""
    num_frames = len(frames)
    if not config.do_segment:
        return [range(num_frames)]
    similarity = {t: cosine(frames[t], frames[t + 1]) for t in range(num_frames - 1)}
    cuts = {t for t, s in similarity.items() if s < config.segment_threshold}
    while config.complementary_segment and len(cuts) + 1 < config.min_segment_num and len(cuts) < len(similarity):
        cuts.add(min(set(similarity) - cuts, key=lambda t: (similarity[t], t)))
    ends = [*(t + 1 for t in sorted(cuts)), num_frames]
    return [range(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def select(t, features, attention, segment, count, config) -> list[int]:
    """ADTS: the tokens of frame t that are kept as they are."""
    tokens, method = features[t], config.token_selection_method
    everyone = range(len(tokens))
    if method == "attn":
        return sorted(everyone, key=lambda j: (-attention[t, j], j))[:count]
    weight = [1.0] * len(tokens)
    if method != "div":
        weight = (attention[t] * 1e6).tolist()
    if method == "attn_div_v2":
        frames = [features[c].mean(0) for c in segment]
        weight = [w * float(sum(tokens[j] @ f for f in frames)) / len(frames) for j, w in enumerate(weight)]
    calibrated = [[(1 - cosine(tokens[i], tokens[j])) * weight[j] for j in everyone] for i in everyone]
    chosen = []
    while len(chosen) < count:
        if chosen:
            worth = {j: min(calibrated[i][j] for i in chosen) for j in everyone if j not in chosen}
        else:
            worth = {j: sorted(calibrated[i][j] for i in everyone)[1] for j in everyone}
        chosen.append(max(worth, key=lambda j: (worth[j], -j)))
    return chosen


def merge(features, segment, free, budget, num_merged, config) -> dict:
    """TSTM: the merged tokens of a segment, by their place (t, n)."""
    # Over time: link each free token to the most similar one of the frame before.
    links = {}
    for t in segment[1:]:
        for i in free[t]:
            similarity = {j: cosine(features[t, i], features[t - 1, j]) for j in free[t - 1]}
            best = max(similarity, key=lambda j: (similarity[j], -j))
            if similarity[best] > config.temporal_threshold and config.temporal_threshold < 1:
                links[t, i] = (similarity[best], (t - 1, best))
    most = (features.shape[1] - budget) * len(segment)  # at most so many links, so that the budget is left
    strongest = sorted(links, key=lambda place: (-links[place][0], place))[:most]
    trees = {}
    for t in segment:
        for i in free[t]:
            root = (t, i)
            while root in strongest:
                root = links[root][1]
            trees.setdefault(root, []).append(features[t, i])
    means = {root: torch.stack(members).mean(0) for root, members in trees.items()}

    # Within the frames: share the clusters out by largest remainder, then cluster the trees' tokens.
    roots = {t: sorted(n for frame, n in means if frame == t) for t in segment}
    total, clusters = len(means), num_merged * len(segment)
    share = {t: len(roots[t]) * clusters // total for t in segment}
    by_remainder = sorted(segment, key=lambda t: (-(len(roots[t]) * clusters % total), t))
    for t in by_remainder[: clusters - sum(share.values())]:
        share[t] += 1
    merged = {}
    for t in segment:
        points = [means[t, n] for n in roots[t]]
        for center, members in density_peaks(points, share[t]).items():
            merged[t, roots[t][center]] = torch.stack([points[m] for m in members]).mean(0)
    return merged


def density_peaks(points, count) -> dict[int, list[int]]:
    """DPC-kNN: the members of each of `count` clusters, by the cluster's centre."""
    if count == 0:
        return {}
    everyone = range(len(points))
    distance = [[float((a - b).norm()) / math.sqrt(len(a)) for b in points] for a in points]
    k = min(count, 7)
    density = [math.exp(-sum(d * d for d in sorted(distance[i])[:k]) / k) for i in everyone]
    largest = max(map(max, distance))
    separation = [min([distance[i][j] for j in everyone if density[j] > density[i]], default=largest) for i in everyone]
    centers = sorted(everyone, key=lambda i: (-density[i] * separation[i], i))[:count]
    clusters = {center: [] for center in centers}
    for i in everyone:
        nearest = i if i in clusters else min(centers, key=lambda c: (distance[i][c], c))
        clusters[nearest].append(i)
    return clusters
