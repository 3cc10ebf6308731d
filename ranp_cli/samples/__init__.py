"""Calibration data out of a seed: four kinds of samples that look like those of the paper's data sets.

Pruning at initialization needs gradients, and those need a few mini-batches of about the right kind, not the data set
itself. Nothing is downloaded, nothing is learnt here:

| function                       | stands in for            | input                              | target                |
|--------------------------------|--------------------------|------------------------------------|-----------------------|
| `voxel_shapes`                 | ShapeNet parts           | (N, 1, 64, 64, 64), 0 or 1         | part of each voxel    |
| `brain_volumes`, `.._64`       | BraTS                    | (N, 4, 128, 128, 128), 0 mean      | tissue of each voxel  |
| `moving_patterns`, `.._224`    | UCF101                   | (N, 3, 16, 112, 112), in [-1, 1]   | class of each clip    |
| `stereo_pairs`                 | SceneFlow                | two of (N, 3, 256, 512), 0 mean    | disparity of the left |

Each is a generator function of mini-batches `(input, target)` and a batch source as it stands:
`--batch ranp_cli.samples:voxel_shapes`. The same seed gives the same bytes, mini-batch by mini-batch, whatever is drawn
elsewhere; the global generators of numpy and torch are not used. `fields.mini_batches` is the one way from samples to mini-batches.
"""

from .brains import brain_volumes, brain_volumes_64
from .clips import moving_patterns, moving_patterns_224
from .stereo import stereo_pairs
from .voxels import IGNORED, voxel_shapes

__all__ = [
    "IGNORED",
    "brain_volumes",
    "brain_volumes_64",
    "moving_patterns",
    "moving_patterns_224",
    "stereo_pairs",
    "voxel_shapes",
]
