"""Image datasets: folders of images, and the layouts of public datasets for anomaly detection."""

from .btad import BTAD
from .cifar import CIFAR10, CIFAR10_CLASSES
from .dataset import Batch, ImageDataset, ImageFolder, Record, Sample, collate
from .decoding import decode_image, load_image
from .duplicate_images import duplicates
from .masks import load_mask
from .mvtec import MVTecAD
from .opening import open_dataset
from .shanghaitech import ShanghaiTech
from .visa import VisA
from .walking import PassedOver

__all__ = [
    "BTAD", "CIFAR10", "CIFAR10_CLASSES", "Batch", "ImageDataset", "ImageFolder", "MVTecAD", "PassedOver",
    "Record", "Sample", "ShanghaiTech", "VisA", "collate", "decode_image", "duplicates", "load_image", "load_mask",
    "open_dataset",
]  # fmt: skip
