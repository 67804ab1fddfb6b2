"""Pretrained networks by name: from torchvision, Hugging Face or a factory, with their weights and transforms."""

from __future__ import annotations

from hapi.model.zoo.models import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]
