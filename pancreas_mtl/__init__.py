"""Pancreas and lesion segmentation with lesion subtypes from CT, by one shared network."""
