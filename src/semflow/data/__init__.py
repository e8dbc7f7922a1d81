"""Image datasets: folders of images, and the layouts of public datasets for anomaly detection."""

from .btad import BTAD
from .cifar import CIFAR10, CIFAR10_CLASSES
from .dataset import ImageDataset, ImageFolder, Record
from .decoding import decode_image, load_image
from .duplicate_images import duplicates
from .masks import load_mask
from .mvtec import MVTecAD
from .opening import open_dataset
from .regions import load_region
from .samples import Batch, CheckedSamples, Sample, as_sample, collate
from .shanghaitech import ShanghaiTech
from .visa import VisA
from .walking import PassedOver

__all__ = [
    "BTAD", "CIFAR10", "CIFAR10_CLASSES", "Batch", "CheckedSamples", "ImageDataset", "ImageFolder", "MVTecAD",
    "PassedOver", "Record", "Sample", "ShanghaiTech", "VisA", "as_sample", "collate", "decode_image", "duplicates",
    "load_image", "load_mask", "load_region", "open_dataset",
]  # fmt: skip
