"""Dividing a partly frozen model into its frozen backbone and its trainable head, which go on sharing its modules."""

from __future__ import annotations

from hapi.model.boundary.division import divide, split, whole

__all__ = ["divide", "split", "whole"]
