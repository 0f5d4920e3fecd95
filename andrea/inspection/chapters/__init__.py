"""The words of the report: a chapter for each geometry, with what a student needs to read the numbers."""

from __future__ import annotations

from andrea.inspection.chapters.attention import attention_chapter
from andrea.inspection.chapters.embedding import embedding_chapter
from andrea.inspection.chapters.simplex import simplex_chapter
from andrea.inspection.chapters.terrain import terrain_chapter

__all__ = ["attention_chapter", "embedding_chapter", "simplex_chapter", "terrain_chapter"]
