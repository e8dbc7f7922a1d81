"""Image data sets: folders of images and the MVTec AD layout, decoded with Pillow."""

from semflow.data.decoding import decode_image, load_image, load_mask
from semflow.data.folder import ImageDataset, ImageFolder, Record
from semflow.data.mvtec import MVTecAD
from semflow.data.opening import open_dataset
from semflow.data.samples import Batch, Sample, collate

__all__ = [
    "Batch",
    "ImageDataset",
    "ImageFolder",
    "MVTecAD",
    "Record",
    "Sample",
    "collate",
    "decode_image",
    "load_image",
    "load_mask",
    "open_dataset",
]
