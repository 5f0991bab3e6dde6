"""What stands in for networks that count atoms."""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 12


class Oracle(nn.Module):
    """Stands in for a network: says one map's heights, whatever it sees, surely."""
    def __init__(self, heights, sure=20.):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(sure))
        self.register_buffer('scores', F.one_hot(torch.as_tensor(heights.astype(np.int64)), CLASSES).movedim(-1, 0).float()[None])
    def forward(self, x):
        pad = [(n - m)//2 for n, m in zip(x.shape[-2:], self.scores.shape[-2:])]
        most = F.pad(self.scores - self.scores[:, :1]*0, [pad[1], x.shape[-1] - self.scores.shape[-1] - pad[1],
                                                          pad[0], x.shape[-2] - self.scores.shape[-2] - pad[0]])
        return self.sure*most.expand(len(x), -1, -1, -1)
