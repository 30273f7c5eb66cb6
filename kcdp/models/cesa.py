"""CESA: alignment by canonical correlation and local CKA (the announced journal extension of KCDP).

Published is one sentence: canonical correlation analysis maps K and V into a shared emotional subspace and alignment
is scored by local CKA, under the same contrastive loss. What follows is our reading of it.

Views. Knowledge and prompts are averaged over their tokens; nothing attends. Both live in the width of the text, so
the directions found for K read P as well, and what prompt j becomes is the sum: e_nj = z(p_j) + z(k_n).

Subspace. Regularised CCA of v and K (Hotelling 1936; Vinod 1976 for the ridge) from running covariances: no label is
needed, so unlabelled pictures shape it too. Every canonical direction is scaled by the square root of its correlation
on either side: the inner product of the two views becomes the covariance that they share, and K and V that do not vary
together (one knowledge for all pictures; nothing seen yet) map to 0. Trained linear maps are added to it.

Score. Local CKA (Maniparambil et al., CVPR 2024) is the CKA of a set of base pairs with the pair in question appended.
Base pairs here are the six prompts, each with a trained visual anchor; the pair in question is the picture and e_nj.
A score thus depends on its own picture alone, not on the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.errors import KcdpError
from kcdp.models.alignment import Alignment, AlignmentOutput
from kcdp.models.collective import gather_rows, processes


class Cesa(Alignment):
    """CCA of v and the knowledge, then local CKA with the six prompts.

    In training mode every forward updates the statistics, as batch normalisation does; a batch of one picture says
    nothing of what varies together and is passed over. Covariances are about the mean of each batch, so that neither
    a drift of the features during training nor a shift between domains looks like correlation. Scores are 0..1, not
    -1..1: kernels have no sign.

    Args:
        prompts: float [6, P, W].
        visual: entries of v.
        components: dimensions D of the shared subspace; at most V and W.
        regularization: ridge of both covariances, in units of their mean variance. At V 1024, W 768 and a thousand
            pictures, directions that do not hold up on other pictures keep high correlations below 0.1.
        momentum: least weight of a batch; early batches are averaged evenly.
        refresh: batches between two decompositions (about half a second of one CPU core at V 1024, W 768).

    Raises:
        KcdpError: a setting out of its range.
    """

    mean_v: torch.Tensor
    mean_k: torch.Tensor
    covariance_v: torch.Tensor
    covariance_k: torch.Tensor
    cross_covariance: torch.Tensor
    projection_v: torch.Tensor
    projection_k: torch.Tensor
    correlations: torch.Tensor
    degrees: torch.Tensor
    batches: torch.Tensor

    def __init__(
        self,
        prompts: torch.Tensor,
        visual: int,
        *,
        components: int = 32,
        regularization: float = 0.3,
        momentum: float = 0.01,
        refresh: int = 100,
    ) -> None:
        super().__init__(prompts)
        classes, width = prompts.shape[0], prompts.shape[2]
        _check(components, regularization, momentum, refresh, min(visual, width))
        self.regularization, self.momentum, self.refresh = regularization, momentum, refresh
        shapes = {
            "mean_v": (visual,), "mean_k": (width,), "covariance_v": (visual, visual), "covariance_k": (width, width),
            "cross_covariance": (visual, width), "projection_v": (visual, components),
            "projection_k": (width, components), "correlations": (components,),
        }  # fmt: skip
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("degrees", torch.zeros((), dtype=torch.int64))  # of freedom, seen so far
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.visual_map = nn.Linear(visual, components)
        self.prompt_map = nn.Linear(width, components, bias=False)
        self.knowledge_map = nn.Linear(width, components, bias=False)
        self.anchors = nn.Parameter(torch.randn(classes, components) / components**0.5)

    def forward(self, v: torch.Tensor, knowledge: torch.Tensor) -> AlignmentOutput:
        with torch.autocast(v.device.type, enabled=False):  # 8 bits of mantissa are too few for covariances
            v, k = v.to(self.mean_v.dtype), knowledge.to(self.mean_k.dtype).mean(dim=1)
            if self.training and len(v) * processes() > 1:
                self.observe(gather_rows(v.detach()), gather_rows(k.detach().expand(len(v), -1)))
            scale_v, scale_k, scale_p = self._scales()
            v, k, p = (v - self.mean_v) / scale_v, (k - self.mean_k) / scale_k, self._prompt_means() / scale_p
            image = v @ self.projection_v + self.visual_map(v)
            base = p @ self.projection_k + self.prompt_map(p)
            text = base + (k @ self.projection_k + self.knowledge_map(k)).unsqueeze(1)
            similarity = local_cka(image, self.anchors, text, base)
        return AlignmentOutput(similarity, text.expand(len(v), -1, -1), image)

    @torch.no_grad()
    def observe(self, v: torch.Tensor, k: torch.Tensor) -> None:
        """Take a batch, [N, V] and [N, W] with N of 2 or more, into the statistics; now and then, decompose them."""
        free = len(v) - 1
        self.degrees += free
        rate = (free / self.degrees).clamp_min(self.momentum).to(v.dtype)
        centered_v, centered_k = v - v.mean(dim=0), k - k.mean(dim=0)
        # New tensors, not changed ones: an earlier forward may still wait for its backward.
        self.mean_v = self.mean_v.lerp(v.mean(dim=0), rate)
        self.mean_k = self.mean_k.lerp(k.mean(dim=0), rate)
        self.covariance_v = self.covariance_v.lerp(centered_v.T @ centered_v / free, rate)
        self.covariance_k = self.covariance_k.lerp(centered_k.T @ centered_k / free, rate)
        self.cross_covariance = self.cross_covariance.lerp(centered_v.T @ centered_k / free, rate)
        self.batches += 1
        if int(self.batches) % self.refresh == 0:
            self.decompose()

    @torch.no_grad()
    def decompose(self) -> None:
        """Set the projections from the covariances; float64 on the CPU, so that every device finds the same ones.

        A basis of the subspace is free up to a rotation of both views, which changes no inner product. Of all these,
        the one nearest to the last is taken (orthogonal Procrustes), so that trained maps keep their meaning.
        """
        scale_v, scale_k, _ = (scale.double().cpu() for scale in self._scales())
        ridge_v = self.regularization * torch.eye(len(self.mean_v), dtype=torch.float64)
        ridge_k = self.regularization * torch.eye(len(self.mean_k), dtype=torch.float64)
        covariance_v = self.covariance_v.double().cpu() / scale_v**2 + ridge_v
        covariance_k = self.covariance_k.double().cpu() / scale_k**2 + ridge_k
        cross = self.cross_covariance.double().cpu() / (scale_v * scale_k)
        a, b, rho = canonical_correlations(covariance_v, covariance_k, cross, self.projection_v.shape[1])
        a, b = a * rho.sqrt(), b * rho.sqrt()
        old_a, old_b = self.projection_v.double().cpu(), self.projection_k.double().cpu()
        if old_a.any():
            left, _, right = torch.linalg.svd(a.T @ covariance_v @ old_a + b.T @ covariance_k @ old_b)
            a, b = a @ (left @ right), b @ (left @ right)
        self.projection_v, self.projection_k = a.to(self.projection_v), b.to(self.projection_k)
        self.correlations = rho.to(self.correlations)

    def _prompt_means(self) -> torch.Tensor:
        """[6, W], about their common mean: what all six share says nothing."""
        means = self.prompts.to(self.mean_k.dtype).mean(dim=1)
        return means - means.mean(dim=0)

    def _scales(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Root mean variance of v, of K and of the prompts, by which they are divided.

        K's takes the prompts' in: knowledge that hardly varies is then small, rather than blown up to unit variance.
        """
        visual, knowledge = self.covariance_v.diagonal().mean(), self.covariance_k.diagonal().mean()
        prompts = self._prompt_means().square().mean()
        variances = torch.stack([visual, knowledge + prompts, prompts])
        scale_v, scale_k, scale_p = torch.where(variances > 0, variances, 1).sqrt()
        return scale_v, scale_k, scale_p


def canonical_correlations(
    covariance_x: torch.Tensor, covariance_y: torch.Tensor, cross: torch.Tensor, components: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Canonical correlation analysis of two views.

    Args:
        covariance_x: [V, V], positive definite (a ridge included).
        covariance_y: [W, W], the same.
        cross: [V, W].
        components: pairs of directions to return, D.

    Returns:
        a [V, D] and b [W, D], with a' covariance_x a = b' covariance_y b = I and a' cross b diagonal; the diagonal, the
        correlations [D], 0..1, falling.
    """
    root_x, root_y = torch.linalg.cholesky(covariance_x), torch.linalg.cholesky(covariance_y)
    whitened = torch.linalg.solve_triangular(root_x, cross, upper=False)
    whitened = torch.linalg.solve_triangular(root_y, whitened.T, upper=False).T
    left, rho, right = torch.linalg.svd(whitened, full_matrices=False)
    a = torch.linalg.solve_triangular(root_x.T, left[:, :components], upper=True)
    b = torch.linalg.solve_triangular(root_y.T, right[:components].T, upper=True)
    return a, b, rho[:components]


def cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019, eq. 1 and 3) of samples seen in two spaces.

    Args:
        x: [..., S, D], S samples.
        y: [..., S, E], the same samples; leading axes broadcast.

    Returns:
        [...], 0..1; unchanged by a rotation, a shift or a common factor of either space. 0 where all samples agree.
    """
    x, y = (z - z.mean(dim=-2, keepdim=True) for z in (x, y))
    return F.cosine_similarity((x @ x.mT).flatten(-2), (y @ y.mT).flatten(-2), dim=-1, eps=1e-12)


def local_cka(image: torch.Tensor, anchors: torch.Tensor, text: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """CKA of the base pairs (anchors[i], base[i]) with the pair (image[n], text[n, j]) appended.

    Args:
        image: [N, D].
        anchors: [6, D].
        text: [N or 1, 6, D].
        base: [6, D].

    Returns:
        [N, 6], 0..1.
    """
    count, classes = text.shape[:2]
    seen = torch.cat([anchors.expand(len(image), -1, -1), image.unsqueeze(1)], dim=1).unsqueeze(1)  # [N, 1, 7, D]
    read = torch.cat([base.expand(count, classes, -1, -1), text.unsqueeze(2)], dim=2)  # [N or 1, 6, 7, D]
    return cka(seen, read)


def _check(components: int, regularization: float, momentum: float, refresh: int, most: int) -> None:
    rules = (
        ("components", components, 1 <= components <= most, f"1 to {most}, the smaller of the widths of v and text"),
        ("regularization", regularization, regularization > 0, "more than 0"),
        ("momentum", momentum, 0 < momentum <= 1, "more than 0 and at most 1"),
        ("refresh", refresh, refresh >= 1, "1 batch or more"),
    )
    for name, value, fits, expected in rules:
        if not fits:
            raise KcdpError(f"model.alignment.{name} is {value}", expected, f"set model.alignment.{name} within it")
