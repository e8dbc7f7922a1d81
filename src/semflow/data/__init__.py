"""Image datasets: folders of images, and the layouts of public datasets for anomaly detection."""

from semflow._tiling import Tiles

from .btad import BTAD
from .categories import Categories
from .cifar import CIFAR10, CIFAR10_CLASSES
from .dataset import ImageDataset, ImageFolder, Record
from .decoding import decode_image, load_image
from .duplicate_images import duplicates
from .masks import load_mask
from .mvtec import MVTecAD
from .mvtec_ad2 import MVTecAD2
from .mvtec_loco import MVTecLOCO
from .opening import categories_in, open_dataset
from .real_iad import RealIAD
from .regions import load_region
from .samples import Batch, CheckedSamples, Sample, as_sample, collate
from .shanghaitech import ShanghaiTech
from .visa import VisA
from .walking import PassedOver

__all__ = [
    "BTAD", "CIFAR10", "CIFAR10_CLASSES", "Batch", "Categories", "CheckedSamples", "ImageDataset", "ImageFolder",
    "MVTecAD", "MVTecAD2", "MVTecLOCO", "PassedOver", "RealIAD", "Record", "Sample", "ShanghaiTech", "Tiles", "VisA",
    "as_sample", "categories_in", "collate", "decode_image", "duplicates", "load_image", "load_mask", "load_region",
    "open_dataset",
]  # fmt: skip
