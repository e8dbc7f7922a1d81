"""Image data sets: folders of images, and the layouts of public data sets for anomaly detection."""

from semflow.data.btad import BTAD
from semflow.data.cifar import CIFAR10, CIFAR10_CLASSES
from semflow.data.decoding import decode_image, load_image, load_mask
from semflow.data.duplicates import duplicates
from semflow.data.folder import ImageDataset, ImageFolder, Record
from semflow.data.mvtec import MVTecAD
from semflow.data.opening import open_dataset
from semflow.data.samples import Batch, Sample, collate
from semflow.data.shanghaitech import ShanghaiTech
from semflow.data.visa import VisA

__all__ = [
    "BTAD",
    "CIFAR10",
    "CIFAR10_CLASSES",
    "Batch",
    "ImageDataset",
    "ImageFolder",
    "MVTecAD",
    "Record",
    "Sample",
    "ShanghaiTech",
    "VisA",
    "collate",
    "decode_image",
    "duplicates",
    "load_image",
    "load_mask",
    "open_dataset",
]
