"""Muon for the weight matrices of the layers, AdamW for the embedding and the norms.

Muon replaces a matrix's momentum by its nearest semi-orthogonal matrix (a few Newton-Schulz steps); small models reach
a given loss in about half the tokens AdamW needs. Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

import torch

MATRIX_RATE, EMBEDDING_RATE = 0.02, 0.004
MOMENTUM, WEIGHT_DECAY = 0.95, 0.05


def orthogonalise(matrices, steps=5):
    """Nearest semi-orthogonal matrices of a stack (N, rows, columns), approximately, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT.contiguous()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """Matrices of equal shape are kept and updated as one stack."""

    def __init__(self, parameters):
        shapes = sorted({tuple(parameter.shape) for parameter in parameters})
        self.groups = [[each for each in parameters if tuple(each.shape) == shape] for shape in shapes]
        self.momenta = [torch.zeros(len(group), *group[0].shape) for group in self.groups]

    @torch.no_grad()
    def step(self, scale):
        rate = MATRIX_RATE * scale
        for group, momentum in zip(self.groups, self.momenta):
            gradient = torch.stack([parameter.grad for parameter in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = orthogonalise(gradient.lerp(momentum, MOMENTUM)).float()
            update *= max(1.0, update.shape[1] / update.shape[2]) ** 0.5
            for parameter, each in zip(group, update):
                parameter.mul_(1 - rate * WEIGHT_DECAY).add_(each, alpha=-rate)


class Optimiser:
    """Both optimisers behind one `step(scale)`, scale being the schedule's factor of all rates."""

    def __init__(self, model):
        matrices = [each for each in model.model.layers.parameters() if each.dim() == 2]
        known = set(map(id, matrices))
        rest = [each for each in model.parameters() if id(each) not in known]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, lr=EMBEDDING_RATE, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)

    def step(self, scale):
        self.muon.step(scale)
        for group in self.adam.param_groups:
            group["lr"] = EMBEDDING_RATE * scale
        self.adam.step()

    def state(self):
        return {"momenta": self.muon.momenta, "adam": self.adam.state_dict()}

    def load(self, state):
        self.muon.momenta = state["momenta"]
        self.adam.load_state_dict(state["adam"])
