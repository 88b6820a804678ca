"""The study that a verb is about: a name and a storage, or a folder."""

from __future__ import annotations

import argparse

from study.naming import STORAGE, folder_of
from study.store import StudyFolder


def named(parser: argparse.ArgumentParser) -> None:
    """What every verb that is about a study with a folder takes."""
    parser.add_argument("study", metavar="NAME_OR_DIR", help="the study's name, or its folder or URI")
    parser.add_argument("--storage", help=f"folder or URI that holds the study of this name (default: {STORAGE})")


def meant(options: argparse.Namespace) -> StudyFolder:
    """The folder that the arguments mean.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    return folder_of(options.study, options.storage)
