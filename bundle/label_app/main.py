"""MONAI Label's entry: `monailabel start_server --app label_app --studies FOLDER`, in the bundle's folder."""

import sys
from pathlib import Path

# The package that a packed bundle carries; an installed one would do as well.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from cpic_monai.label.app import LabelApp

__all__ = ["LabelApp"]
